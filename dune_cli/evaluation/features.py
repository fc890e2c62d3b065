"""What stands in a column of `dune eval features`: encoders, teachers, untrained networks, raw pixels; one interface.

`NAME|FILE|timm:…` an encoder; `teacher:NAME[=FILE]` a teacher of dune distill; `random:STUDENT` or `random:FILE` the
same network with fresh weights, the control of what training brought; `pixels` no network at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dune_cli import runtime
from dune_cli.checkpoints.loader import load_encoder
from dune_cli.errors import UserError
from dune_cli.io.inputs import IMAGE_SUFFIXES
from dune_cli.io.photos import read_photo
from dune_cli.models.distilled_encoder import DistilledEncoder
from dune_cli.provenance import Source
from dune_cli.teachers.registry import load_teacher
from dune_cli.teachers.teacher import CLS, PATCH, Teacher
from dune_cli.training.common.dataset import centre_crop
from dune_cli.training.distill.held_out import cosine_sums
from dune_cli.training.distill.students import TimmStudent, initialise, new_encoder

PIXELS = "pixels"
CELL_PX = 16  # of columns without a patch grid of their own
SMALL_PX = 16  # side of the picture that stands for the whole photo in the column `pixels`


@dataclass(frozen=True)
class FeatureTokens:
    """cls (B, D) and patches (B, h, w, D), float32, on the CPU."""

    cls: torch.Tensor
    patches: torch.Tensor


@dataclass(frozen=True)
class FeatureSource:
    """One set of features. `encode`: images (B, 3, H, W) in [0, 1], sides multiples of `cell_px` -> Tokens.

    distilled: the encoder, where it has projectors that predict teachers.
    """

    name: str
    source: Source
    cell_px: int
    encode: Callable[[torch.Tensor], FeatureTokens]
    distilled: DistilledEncoder | None = None


def open_feature_source(spec: str, size_px: int, seed: int, device: str, dtype: str) -> FeatureSource:
    """The column of a spec. Raises UserError, CheckpointError, WeightsMissing or PackageMissing."""
    if spec == PIXELS:
        return FeatureSource(spec, Source("raw pixels", None, "none"), CELL_PX, _pixels)
    if spec.startswith("random:"):
        return _random(spec, size_px, seed, device)
    if spec.startswith(("teacher:", "timm:")):
        where = runtime.pick_device(device)
        teacher = load_teacher(spec.removeprefix("teacher:"), where, runtime.pick_dtype(dtype, where)).to(where)
        return _of_teacher(spec, teacher, where)
    encoder = load_encoder(spec, device, dtype)
    return _of_encoder(spec, encoder, encoder.source)


def _of_encoder(name: str, encoder: nn.Module, source: Source) -> FeatureSource:
    def encode(images: torch.Tensor) -> FeatureTokens:
        with torch.inference_mode():
            tokens = encoder(images)
        return FeatureTokens(tokens.cls.float().cpu(), tokens.map().float().cpu())

    predicts = encoder if isinstance(encoder, DistilledEncoder) and encoder.teachers else None
    return FeatureSource(name, source, encoder.patch, encode, predicts)


def _of_teacher(name: str, teacher: Teacher, device: torch.device) -> FeatureSource:
    cell_px = int(getattr(getattr(teacher, "encoder", None), "patch", CELL_PX))

    def encode(images: torch.Tensor) -> FeatureTokens:
        grid = (images.shape[-2] // cell_px, images.shape[-1] // cell_px)
        tokens = teacher(images.to(device), grid)
        patches = tokens[PATCH].float().cpu().unflatten(1, grid)
        return FeatureTokens(tokens[CLS].float().cpu() if CLS in tokens else patches.mean((1, 2)), patches)

    return FeatureSource(name, teacher.source, cell_px, encode)


def _random(spec: str, size_px: int, seed: int, device: str) -> FeatureSource:
    name = spec.removeprefix("random:")
    where = runtime.pick_device(device)
    source = Source(spec, None, "none")
    if Path(name).is_file():
        encoder = load_encoder(name, device)
        for part in encoder.modules():
            if isinstance(part, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d):
                part.reset_parameters()
        initialise(encoder, torch.Generator().manual_seed(seed))
        return _of_encoder(spec, encoder.eval(), source)
    encoder = new_encoder(name, _near(size_px, name), seed, open_weights=False).eval().to(where)
    if not isinstance(encoder, TimmStudent):
        return _of_encoder(spec, encoder, source)

    def encode(images: torch.Tensor) -> FeatureTokens:
        with torch.inference_mode():
            tokens = encoder.intermediate(images.to(where), (-1,))[0]
        return FeatureTokens(tokens.cls.float().cpu(), tokens.map().float().cpu())

    return FeatureSource(spec, source, encoder.patch, encode)


def _near(size_px: int, name: str) -> int:
    """A size that a fresh student of any patch takes, near the wanted one."""
    patch = 14 if name.startswith(("dune-vit", "vit:")) else 16
    return max(1, round(size_px / patch)) * patch


def _pixels(images: torch.Tensor) -> FeatureTokens:
    """Each cell of 16 px as 8 x 8 RGB values, the whole photo as 16 x 16, both without their mean colour."""
    cells = F.avg_pool2d(images, 2)
    patches = F.pixel_unshuffle(cells, CELL_PX // 2).unflatten(1, (3, -1))
    patches = (patches - patches.mean(2, keepdim=True)).flatten(1, 2).permute(0, 2, 3, 1)
    small = F.interpolate(images, size=(SMALL_PX, SMALL_PX), mode="area")
    return FeatureTokens((small - small.mean((2, 3), keepdim=True)).flatten(1), patches)


# How much features know of classes and of teachers: k-NN, linear probe, cosine to teachers.
#
# k-NN as in DINO (Caron et al. 2021: votes weighted by exp(cosine / 0.07)), on centred features; the linear probe is
# multinomial logistic regression on standardised features.


TEMPERATURE = 0.07
FOLDS = 5
DECAY = 1e-3
# the published names of the teachers' projectors
PUBLISHED_PROJECTORS = {
    "dinov2": "dino2reg_vitlarge_14",
    "mast3r": "mast3r_vitlarge_16",
    "multihmr": "multihmr_vitlarge_14_672",
}
POOLS = ("cls", "mean", "both")


@dataclass(frozen=True)
class LabelledPhotos:
    """Photos with classes. `split` (N): fold of each photo; with a folder of its own, 1 for training and 0 for test."""

    paths: list[Path]
    labels: torch.Tensor
    classes: list[str]
    split: torch.Tensor
    has_test_folder: bool


@dataclass(frozen=True)
class Accuracy:
    """Share of photos whose class was told, and the mean share over classes; `error`: standard error of the first."""

    accuracy: float
    balanced: float
    error: float
    photos: int


@dataclass(frozen=True)
class TeacherCosine:
    """Mean cosine to a teacher's tokens: of the prediction, of the teacher's mean; `standardised`: with it removed.

    Over the tokens that are not zero; NaN where there is none.
    """

    teacher: str
    kind: str
    cosine: float
    mean_feature: float
    standardised: float


def read_labelled_photos(root: str | Path, seed: int) -> LabelledPhotos:
    """A class per sub-folder; or `train` and `val` (or `test`) folders of such. Else five stratified folds by `seed`.

    Raises UserError for fewer than two classes or photos of a class.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is no folder; give one with a sub-folder for each class")
    test = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    has_test = test is not None and (root / "train").is_dir()
    parts = [(root / "train", 1), (test, 0)] if has_test and test is not None else [(root, None)]
    names = sorted({folder.name for part, _ in parts for folder in part.iterdir() if folder.is_dir()})
    paths: list[Path] = []
    labels: list[int] = []
    split: list[int] = []
    rng = np.random.default_rng(seed)
    for part, fixed in parts:
        for label, name in enumerate(names):
            found = _photos_in(part / name)
            paths += found
            labels += [label] * len(found)
            split += [fixed] * len(found) if fixed is not None else list(rng.permutation(len(found)) % FOLDS)
    counts = np.bincount(labels, minlength=len(names)) if names else np.zeros(0, int)
    if len(names) < 2 or counts.min() < 2:
        few = ", ".join(f"{name}: {count}" for name, count in zip(names, counts) if count < 2) or "no sub-folders"
        raise UserError(f"{root} needs at least two sub-folders, one for each class, with two photos each ({few})")
    return LabelledPhotos(paths, torch.tensor(labels), names, torch.tensor(split), has_test)


def _photos_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def load_crops(paths: Sequence[Path], size_px: int, cell_px: int) -> torch.Tensor:
    """The photos' centred squares (N, 3, S, S) in [0, 1]; S is the multiple of `cell_px` nearest to `size_px`."""
    side = max(1, round(size_px / cell_px)) * cell_px
    images = (torch.from_numpy(np.require(read_photo(path).rgb, requirements="W")) for path in paths)
    return torch.stack([centre_crop(image.permute(2, 0, 1), side) for image in images])


def global_features(
    column: FeatureSource, paths: Sequence[Path], size_px: int, pool: str, batch_size: int, tick: Callable[[int], None]
) -> torch.Tensor:
    """(N, D): CLS, the mean patch, or both, each of length 1. `tick` is told of each batch's photos."""
    rows = []
    for first in range(0, len(paths), batch_size):
        batch = paths[first : first + batch_size]
        tokens = column.encode(load_crops(batch, size_px, column.cell_px))
        every = {"cls": tokens.cls, "mean": tokens.patches.mean((1, 2))}
        rows.append(torch.cat([F.normalize(every[k], dim=1) for k in (POOLS[:2] if pool == "both" else (pool,))], 1))
        tick(len(batch))
    return torch.cat(rows)


def knn(features: torch.Tensor, data: LabelledPhotos, k: int) -> Accuracy:
    """Nearest neighbours among the training folder, or among all other photos (one left out)."""
    bank = data.split == 1 if data.has_test_folder else torch.ones(len(features), dtype=torch.bool)
    asked = data.split == 0 if data.has_test_folder else bank
    x = features.double() - features[bank].double().mean(0)
    x = F.normalize(x, dim=1)
    similarity = x[asked] @ x[bank].T
    if not data.has_test_folder:
        similarity.fill_diagonal_(-torch.inf)
    k = min(k, int(bank.sum()) - (0 if data.has_test_folder else 1))
    near = similarity.topk(k, dim=1)
    votes = torch.zeros(len(similarity), len(data.classes), dtype=torch.float64)
    votes.scatter_add_(1, data.labels[bank][near.indices], (near.values / TEMPERATURE).exp())
    return _accuracy(votes.argmax(1), data.labels[asked])


def linear_probe(features: torch.Tensor, data: LabelledPhotos) -> Accuracy:
    """Logistic regression, fitted on the training folder, or on four fifths of the photos for each fifth."""
    if data.has_test_folder:
        test = data.split == 0
        return _accuracy(_fit_and_predict(features, data, ~test)[test], data.labels[test])
    told = torch.empty_like(data.labels)
    for fold in range(FOLDS):
        test = data.split == fold
        if bool(test.any()):
            told[test] = _fit_and_predict(features, data, ~test)[test]
    return _accuracy(told, data.labels)


def _fit_and_predict(features: torch.Tensor, data: LabelledPhotos, train: torch.Tensor) -> torch.Tensor:
    x, y = features.double(), data.labels
    mean, std = x[train].mean(0), x[train].std(0).clamp_min(1e-6)
    x = (x - mean) / std / x.shape[1] ** 0.5
    weight = torch.zeros(x.shape[1], len(data.classes), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(data.classes), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x[train] @ weight + bias, y[train]) + DECAY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (x @ weight.detach() + bias.detach()).argmax(1)


def _accuracy(told: torch.Tensor, true: torch.Tensor) -> Accuracy:
    right = (told == true).double()
    share = float(right.mean())
    classes = [float(right[true == label].mean()) for label in true.unique()]
    return Accuracy(share, float(np.mean(classes)), (share * (1 - share) / len(true)) ** 0.5, len(true))


def majority_class(data: LabelledPhotos) -> Accuracy:
    """Always the largest class."""
    asked = data.labels[data.split == 0] if data.has_test_folder else data.labels
    return _accuracy(asked.mode().values.expand_as(asked), asked)


@torch.inference_mode()
def teacher_cosines(
    column: FeatureSource, teachers: Mapping[str, Teacher], paths: Sequence[Path], size_px: int, batch_size: int
) -> list[TeacherCosine]:
    """How well a distilled encoder's projectors predict teachers on photos. Empty for encoders without projectors.

    Raises UserError for a teacher that it has no projector or no statistics for.
    """
    encoder = column.distilled
    if encoder is None:
        return []
    sums: dict[tuple[str, str], torch.Tensor] = {}
    for first in range(0, len(paths), batch_size):
        images = load_crops(paths[first : first + batch_size], size_px, column.cell_px)
        grid = (images.shape[-2] // column.cell_px, images.shape[-1] // column.cell_px)
        for name, teacher in teachers.items():
            own = _projector_name(encoder, name)
            predicted = encoder.project(images, own)
            every = {CLS: predicted.cls, PATCH: predicted.patches}
            for kind, raw in teacher(images.to(predicted.cls.device), grid).items():
                norms = encoder.teacher_norms[own].normalizers if own in encoder.teacher_norms else {}
                if kind not in norms:
                    raise UserError(f"{column.name} has no statistics of {name}'s {kind} tokens; leave {name} out")
                norm = norms[kind]
                restored = every[kind] * norm.std.clamp(min=norm.MIN_STD) + norm.mean
                pairs = ((restored, raw), (norm.mean.expand_as(raw), raw), (every[kind], norm(raw)))
                sums[name, kind] = sums.get((name, kind), 0) + cosine_sums(pairs, raw)
    return [TeacherCosine(name, kind, *(total[:3] / total[3]).tolist()) for (name, kind), total in sums.items()]


def _projector_name(encoder: torch.nn.Module, teacher: str) -> str:
    for name in (teacher, PUBLISHED_PROJECTORS.get(teacher, teacher)):
        if name in encoder.teachers:
            return name
    raise UserError(f"this encoder predicts no teacher {teacher!r}; it has: {', '.join(encoder.teachers)}")
