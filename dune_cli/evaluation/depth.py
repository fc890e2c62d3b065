"""Depth of single photos against measured depth, beside what needs no network: `dune eval depth`.

Scores are means over the photos of a set, and means of groups are means over their sets. Controls: one depth for all
pixels, a vertical gradient (near below), the mean map of the training data, and FastDepth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from dune_cli import runtime
from dune_cli.checkpoints import registry, weights_folder
from dune_cli.checkpoints.loader import load_depth
from dune_cli.geometry.cameras import K_from_focal
from dune_cli.io.photos import Photo, read_photo
from dune_cli.models.heads import HeadedEncoder
from dune_cli.provenance import Source
from dune_cli.tasks import depth as depth_task
from dune_cli.tasks.depth import DepthModel
from dune_cli.training.heads.datasets import Example
from dune_cli.training.heads.labels import read_label
from dune_cli.training.heads.metrics import (
    ALIGNMENTS,
    Alignment,
    DepthScore,
    depth_score,
    disparity_correlation,
    edge_recall,
)

# --- what is scored ---

LARGEST_PX = 320  # long side that truth is compared at
LEAST_SHARE = 0.02  # of the pixels with a truth
DEFAULT_FOV_DEG = 55.0
Predict = Callable[[Photo, float], np.ndarray]  # photo, focal length in its pixels -> depth (h, w) of the whole photo


@dataclass(frozen=True)
class Crop:
    """Which pixels count. cap_m: nearest and farthest true depth. box: top, bottom, left, right as shares."""

    cap_m: tuple[float, float]
    box: tuple[float, float, float, float] = (0.0, 1.0, 0.0, 1.0)


CROPS = {
    "none": Crop((0.05, 60.0)),
    # D. Eigen et al., NIPS 2014: rows 45 to 471 and columns 41 to 601 of 480 x 640
    "nyu": Crop((1e-3, 10.0), (45 / 480, 471 / 480, 41 / 640, 601 / 640)),
    # R. Garg et al., ECCV 2016
    "kitti": Crop((1e-3, 80.0), (0.40810811, 0.99189189, 0.03594771, 0.96405229)),
}


@dataclass(frozen=True)
class PhotoScore:
    """A method on one photo. scores: by alignment, empty for a set of disparities, whose correlation is given instead.
    edges: recall of depth edges, NaN where there are none."""

    example: Example
    method: str
    scores: Mapping[Alignment, DepthScore]
    correlation: float
    edges: float


def constant(photo: Photo, focal_px: float) -> np.ndarray:
    """The same depth everywhere."""
    return np.ones((2, 2), np.float32)


def vertical_gradient(photo: Photo, focal_px: float) -> np.ndarray:
    """A depth that falls linearly from the upper border to the lower one, where it is near 0."""
    return np.repeat(1.0 - (np.arange(96, dtype=np.float32)[:, None] + 0.5) / 96, 2, 1)


def mean_map(log_depth: np.ndarray, canonical_focal_px: float, size_px: int) -> Predict:
    """The mean log-depth (h, w) of a head's training data, for its canonical focal length, as a method.

    size_px: side of the square with as many pixels as the input that the focal length refers to.
    """

    def predict(photo: Photo, focal_px: float) -> np.ndarray:
        input_focal_px = focal_px * size_px / np.sqrt(photo.width * photo.height)
        return np.exp(log_depth) * np.float32(input_focal_px / canonical_focal_px)

    return predict


def fastdepth(device: torch.device) -> Predict:
    """FastDepth at 224 x 224, as it was trained. WeightsMissing where it is to be made first."""
    from dune_cli.teachers.fastdepth import DEFAULT_WEIGHTS, as_square, load_network

    net, _ = load_network(DEFAULT_WEIGHTS, device)

    @torch.inference_mode()
    def predict(photo: Photo, focal_px: float) -> np.ndarray:
        image = torch.from_numpy(np.array(photo.rgb)).permute(2, 0, 1)[None].to(device).float() / 255
        return net(as_square(image)).depth[0].cpu().numpy()

    return predict


# --- scoring ---


def score_examples(
    examples: Sequence[Example], methods: Mapping[str, Predict], crop: Crop = CROPS["none"]
) -> Iterator[list[PhotoScore]]:
    """The scores of all methods on each photo; nothing for a photo with too little true depth.

    UserError for a photo or depth map that cannot be read.
    """
    for example in examples:
        photo = read_photo(example.photo)
        label = read_label(example, (photo.width, photo.height), photo.exif_focal_px)
        true = label.values.astype(np.float64)
        step = -(-max(true.shape) // LARGEST_PX)
        true = true[step // 2 :: step, step // 2 :: step]
        height, width = true.shape
        counted = np.zeros(true.shape, bool)
        top, bottom, left, right = crop.box
        counted[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
        counted &= true > 0
        if label.kind == "metric":
            counted &= (true >= crop.cap_m[0]) & (true <= crop.cap_m[1])
        if counted.mean() < LEAST_SHARE:
            continue
        focal_px = label.focal_px or default_focal_px(photo)
        scores = []
        for name, predict in methods.items():
            found = on_grid(predict(photo, focal_px), (height, width))
            scores.append(_score(example, name, found, np.where(counted, true, 0), label.kind))
        yield scores


def default_focal_px(photo: Photo) -> float:
    """What `dune depth` assumes where nothing tells the camera."""
    return max(photo.width, photo.height) / 2 / np.tan(np.radians(DEFAULT_FOV_DEG) / 2)


def on_grid(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A depth map of the whole photo at another size (height, width), bilinear; averaged where it shrinks."""
    values = torch.from_numpy(np.ascontiguousarray(depth, np.float32))[None, None]
    shrinks = values.shape[-2] > size[0]
    resized = F.interpolate(values, size=size, mode="bilinear", align_corners=False, antialias=shrinks)
    return resized[0, 0].numpy().astype(np.float64)


def _score(example: Example, method: str, found: np.ndarray, true: np.ndarray, kind: str) -> PhotoScore:
    counted = true > 0
    if kind == "disparity":
        return PhotoScore(example, method, {}, disparity_correlation(found[counted], true[counted]), float("nan"))
    scores = {how: depth_score(found[counted], true[counted], how) for how in ALIGNMENTS}
    return PhotoScore(example, method, scores, float("nan"), edge_recall(found, true))


# --- methods ---


def load_methods(
    models: Sequence[str], encoder: str | None, device: str, dtype: str, size_px: int | None, flip: bool
) -> tuple[dict[str, Predict], list[Source]]:
    """The controls, then the models by name; and the weights behind them.

    The mean map is that of the first head that carries one; FastDepth is a control where its weights are here.
    """
    methods: dict[str, Predict] = {"constant": constant, "vertical gradient": vertical_gradient}
    loaded: dict[str, Predict] = {}
    sources: list[Source] = []
    for name in models:
        model = load_depth(name, encoder, device, dtype)
        short = Path(name).stem if Path(name).suffix else name
        loaded[f"{Path(name).parent.name}/{short}" if short in loaded else short] = of_model(model, size_px, flip)
        sources += model.sources
        if isinstance(model, HeadedEncoder) and "mean map" not in methods:
            stored = model.card.measured.get("mean_log_depth")
            if stored:
                canonical = model.config.canonical_focal_px
                methods["mean map"] = mean_map(np.array(stored, np.float32), canonical, model.card.size_px)
    entry = registry.find("fastdepth")
    if entry is not None and weights_folder.find_present(entry) is not None:
        methods["fastdepth"] = fastdepth(runtime.pick_device(device))
    return methods | loaded, list({source.name: source for source in sources}.values())


def of_model(model: DepthModel, size_px: int | None = None, flip: bool = False) -> Predict:
    """A depth model as `dune depth` runs it; what has no depth, such as sky, counts as the farthest."""

    def predict(photo: Photo, focal_px: float) -> np.ndarray:
        K = K_from_focal(focal_px, photo.width, photo.height)
        depth = depth_task.predict(model, photo, (K, "given"), size_px, flip).depth
        valid = np.isfinite(depth)
        return np.where(valid, depth, depth[valid].max() if valid.any() else 1.0)

    return predict


# --- tables ---


@dataclass(frozen=True)
class DepthSetScore:
    """A method on a set, or on a group of sets: photos, and the mean of each number ("affine abs_rel", ...)."""

    name: str
    method: str
    photos: int
    numbers: Mapping[str, float]


def set_scores(scores: Sequence[PhotoScore]) -> list[DepthSetScore]:
    """Means over the photos of each set, in the order in which sets and methods come."""
    groups: dict[tuple[str, str], list[PhotoScore]] = {}
    for score in scores:
        groups.setdefault((score.example.set_name, score.method), []).append(score)
    return [
        DepthSetScore(set_name, method, len(group), _means([_numbers(score) for score in group]))
        for (set_name, method), group in groups.items()
    ]


def group_scores(scores: Sequence[PhotoScore], rows: Sequence[DepthSetScore]) -> list[DepthSetScore]:
    """Means over the sets that say that they are indoors, and over those outdoors, for each method."""
    settings: dict[str, list[str]] = {}
    for score in scores:
        sets = settings.setdefault(score.example.setting or "setting unknown", [])
        if score.example.set_name not in sets:
            sets.append(score.example.set_name)
    methods = list(dict.fromkeys(row.method for row in rows))
    return [group_score(rows, name, sets, method) for name, sets in settings.items() for method in methods]


def group_score(scores: Sequence[DepthSetScore], name: str, sets: Sequence[str], method: str) -> DepthSetScore:
    """The mean over some sets, each counting the same."""
    group = [score for score in scores if score.name in sets and score.method == method]
    return DepthSetScore(name, method, sum(score.photos for score in group), _means([score.numbers for score in group]))


def _numbers(score: PhotoScore) -> dict[str, float]:
    numbers = {
        f"{how} {field}": getattr(one, field)
        for how, one in score.scores.items()
        for field in ("abs_rel", "rmse", "delta1", "si_log")
    }
    return numbers | {"edge recall": score.edges, "correlation": score.correlation}


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    means = {}
    for name in names:
        values = [row[name] for row in rows if name in row and np.isfinite(row[name])]
        means[name] = float(np.mean(values)) if values else float("nan")
    return means


def tables(rows: Sequence[DepthSetScore], groups: Sequence[DepthSetScore], methods: Sequence[str]) -> list[str]:
    """Markdown tables: AbsRel / delta_1 for each alignment, of sets and groups by method; edges and correlations."""
    found = []
    lines = {(row.name, row.method): row for row in (*rows, *groups)}
    names = list(dict.fromkeys(row.name for row in (*rows, *groups)))
    for how in reversed(ALIGNMENTS):
        cells = [
            [
                f"{name} ({lines[name, methods[0]].photos})",
                *(_pair(lines[name, method].numbers, f"{how} abs_rel", f"{how} delta1") for method in methods),
            ]
            for name in names
        ]
        found.append(_markdown([f"{how}: AbsRel / share < 1.25", *methods], cells))
    for number, title in (
        ("edge recall", "recall of depth edges at 2 px"),
        ("correlation", "correlation of disparity"),
    ):
        some = [name for name in names if np.isfinite(lines[name, methods[0]].numbers.get(number, np.nan))]
        cells = [[name, *(f"{lines[name, method].numbers[number]:.3f}" for method in methods)] for name in some]
        if cells:
            found.append(_markdown([title, *methods], cells))
    return found


def _pair(numbers: Mapping[str, float], first: str, second: str) -> str:
    values = [numbers.get(name, np.nan) for name in (first, second)]
    return f"{values[0]:.3f} / {values[1]:.3f}" if np.isfinite(values).all() else "-"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
