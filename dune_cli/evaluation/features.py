"""`dune eval features`: class accuracy of features, and how well encoders predict their teachers.

k-NN as in DINO (Caron et al. 2021: votes weighted by exp(cosine / 0.07)), on centred features. The linear probe is
multinomial logistic regression on standardised features. A source of features is named by one of:

    NAME, FILE or timm:MODEL        an encoder
    teacher:NAME[=FILE]             a teacher of dune distill
    random:STUDENT or random:FILE   the same network with new weights: the control of what training brought
    pixels                          no network
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
from dune_cli.training.distill.teacher_outputs import token_weights

PIXELS = "pixels"
CELL_PX = 16  # of sources without a patch grid
THUMBNAIL_PX = 16  # side of the whole photo's features in the source `pixels`
POOLS = ("cls", "mean", "both")
TEMPERATURE = 0.07
FOLDS = 5
WEIGHT_DECAY = 1e-3
# teacher -> projector in the published encoders
PUBLISHED_PROJECTORS = {
    "dinov2": "dino2reg_vitlarge_14",
    "mast3r": "mast3r_vitlarge_16",
    "multihmr": "multihmr_vitlarge_14_672",
}

# --- sources of features ---


@dataclass(frozen=True)
class FeatureTokens:
    """cls (B, D) and patches (B, h, w, D), float32, on the CPU."""

    cls: torch.Tensor
    patches: torch.Tensor


@dataclass(frozen=True)
class FeatureSource:
    """A column of the table. encode: images (B, 3, H, W) in [0, 1], sides multiples of `cell_px` -> FeatureTokens.

    distilled: the encoder, if it has projectors to teachers.
    """

    name: str
    source: Source
    cell_px: int
    encode: Callable[[torch.Tensor], FeatureTokens]
    distilled: DistilledEncoder | None = None


def open_feature_source(spec: str, size_px: int, seed: int, device: str, dtype: str) -> FeatureSource:
    """The source of that name. Raises UserError, CheckpointError, WeightsMissing or PackageMissing."""
    if spec == PIXELS:
        return FeatureSource(spec, Source("raw pixels", None, "none"), CELL_PX, _encode_pixels)
    if spec.startswith("random:"):
        return _random_source(spec, size_px, seed, device)
    if spec.startswith(("teacher:", "timm:")):
        torch_device = runtime.pick_device(device)
        torch_dtype = runtime.pick_dtype(dtype, torch_device)
        teacher = load_teacher(spec.removeprefix("teacher:"), torch_device, torch_dtype).to(torch_device)
        return _teacher_source(spec, teacher, torch_device)
    encoder = load_encoder(spec, device, dtype)
    return _encoder_source(spec, encoder, encoder.source)


def _encoder_source(name: str, encoder: nn.Module, source: Source) -> FeatureSource:
    def encode(images: torch.Tensor) -> FeatureTokens:
        with torch.inference_mode():
            tokens = encoder(images)
        return FeatureTokens(tokens.cls.float().cpu(), tokens.map().float().cpu())

    distilled = encoder if isinstance(encoder, DistilledEncoder) and encoder.teachers else None
    return FeatureSource(name, source, encoder.patch, encode, distilled)


def _teacher_source(name: str, teacher: Teacher, device: torch.device) -> FeatureSource:
    cell_px = int(getattr(getattr(teacher, "encoder", None), "patch", CELL_PX))

    def encode(images: torch.Tensor) -> FeatureTokens:
        grid = (images.shape[-2] // cell_px, images.shape[-1] // cell_px)
        tokens = teacher(images.to(device), grid)
        patches = tokens[PATCH].float().cpu().unflatten(1, grid)
        return FeatureTokens(tokens[CLS].float().cpu() if CLS in tokens else patches.mean((1, 2)), patches)

    return FeatureSource(name, teacher.source, cell_px, encode)


def _random_source(spec: str, size_px: int, seed: int, device: str) -> FeatureSource:
    name = spec.removeprefix("random:")
    torch_device = runtime.pick_device(device)
    source = Source(spec, None, "none")
    if Path(name).is_file():
        encoder = load_encoder(name, device)
        for part in encoder.modules():
            if isinstance(part, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d):
                part.reset_parameters()
        initialise(encoder, torch.Generator().manual_seed(seed))
        return _encoder_source(spec, encoder.eval(), source)
    encoder = new_encoder(name, _student_size(size_px, name), seed, open_weights=False).eval().to(torch_device)
    if not isinstance(encoder, TimmStudent):
        return _encoder_source(spec, encoder, source)

    def encode(images: torch.Tensor) -> FeatureTokens:
        with torch.inference_mode():
            tokens = encoder.intermediate(images.to(torch_device), (-1,))[0]
        return FeatureTokens(tokens.cls.float().cpu(), tokens.map().float().cpu())

    return FeatureSource(spec, source, encoder.patch, encode)


def _student_size(size_px: int, name: str) -> int:
    """The multiple of the student's patch nearest to `size_px`."""
    patch = 14 if name.startswith(("dune-vit", "vit:")) else 16
    return max(1, round(size_px / patch)) * patch


def _encode_pixels(images: torch.Tensor) -> FeatureTokens:
    """Each cell of 16 px as 8 x 8 RGB values, the whole photo as 16 x 16, both without their mean colour."""
    cells = F.avg_pool2d(images, 2)
    patches = F.pixel_unshuffle(cells, CELL_PX // 2).unflatten(1, (3, -1))
    patches = (patches - patches.mean(2, keepdim=True)).flatten(1, 2).permute(0, 2, 3, 1)
    thumbnail = F.interpolate(images, size=(THUMBNAIL_PX, THUMBNAIL_PX), mode="area")
    return FeatureTokens((thumbnail - thumbnail.mean((2, 3), keepdim=True)).flatten(1), patches)


def load_crops(paths: Sequence[Path], size_px: int, cell_px: int) -> torch.Tensor:
    """The photos' centre crops (N, 3, S, S) in [0, 1]; S is the multiple of `cell_px` nearest to `size_px`."""
    side = max(1, round(size_px / cell_px)) * cell_px
    images = (torch.from_numpy(np.require(read_photo(path).rgb, requirements="W")) for path in paths)
    return torch.stack([centre_crop(image.permute(2, 0, 1), side) for image in images])


def global_features(
    source: FeatureSource,
    paths: Sequence[Path],
    size_px: int,
    pool: str,
    batch_size: int,
    on_batch: Callable[[int], None],
) -> torch.Tensor:
    """(N, D) features of photos: CLS, the mean patch, or both, each of unit length.

    pool: of POOLS. on_batch: called with the number of photos of each batch.
    """
    pools = POOLS[:2] if pool == "both" else (pool,)
    rows = []
    for first in range(0, len(paths), batch_size):
        batch = paths[first : first + batch_size]
        tokens = source.encode(load_crops(batch, size_px, source.cell_px))
        pooled = {"cls": tokens.cls, "mean": tokens.patches.mean((1, 2))}
        rows.append(torch.cat([F.normalize(pooled[name], dim=1) for name in pools], 1))
        on_batch(len(batch))
    return torch.cat(rows)


# --- classes ---


@dataclass(frozen=True)
class LabelledPhotos:
    """Photos with class labels (N,). split (N,): the fold of each photo; with a test folder, 1 for training photos and
    0 for test photos."""

    paths: list[Path]
    labels: torch.Tensor
    classes: list[str]
    split: torch.Tensor
    has_test_folder: bool


@dataclass(frozen=True)
class Accuracy:
    """accuracy: share of photos with the right class. balanced: the mean over classes. error: standard error of the
    accuracy."""

    accuracy: float
    balanced: float
    error: float
    photos: int


def read_labelled_photos(root: str | Path, seed: int) -> LabelledPhotos:
    """Photos of `root`/CLASS/, or of `root`/train/CLASS/ and `root`/val/CLASS/ (or test/).

    Without a test folder they are split into five stratified folds, drawn by `seed`. UserError for fewer than two
    classes, or two photos of a class.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is no folder; give one with a sub-folder for each class")
    test = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    has_test_folder = test is not None and (root / "train").is_dir()
    parts = [(root / "train", 1), (test, 0)] if has_test_folder and test is not None else [(root, None)]
    classes = sorted({folder.name for part, _ in parts for folder in part.iterdir() if folder.is_dir()})
    paths: list[Path] = []
    labels: list[int] = []
    split: list[int] = []
    rng = np.random.default_rng(seed)
    for part, fixed in parts:
        for label, name in enumerate(classes):
            photos = _find_photos(part / name)
            paths += photos
            labels += [label] * len(photos)
            split += [fixed] * len(photos) if fixed is not None else list(rng.permutation(len(photos)) % FOLDS)
    counts = np.bincount(labels, minlength=len(classes)) if classes else np.zeros(0, int)
    if len(classes) < 2 or counts.min() < 2:
        few = ", ".join(f"{name}: {count}" for name, count in zip(classes, counts) if count < 2) or "no sub-folders"
        raise UserError(f"{root} needs at least two sub-folders, one for each class, with two photos each ({few})")
    return LabelledPhotos(paths, torch.tensor(labels), classes, torch.tensor(split), has_test_folder)


def _find_photos(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def knn(features: torch.Tensor, photos: LabelledPhotos, k: int) -> Accuracy:
    """Accuracy of the k nearest neighbours: among the training photos, or among all others (leave one out)."""
    bank = photos.split == 1 if photos.has_test_folder else torch.ones(len(features), dtype=torch.bool)
    queries = photos.split == 0 if photos.has_test_folder else bank
    x = features.double() - features[bank].double().mean(0)
    x = F.normalize(x, dim=1)
    similarity = x[queries] @ x[bank].T
    if not photos.has_test_folder:
        similarity.fill_diagonal_(-torch.inf)
    k = min(k, int(bank.sum()) - (0 if photos.has_test_folder else 1))
    nearest = similarity.topk(k, dim=1)
    votes = torch.zeros(len(similarity), len(photos.classes), dtype=torch.float64)
    votes.scatter_add_(1, photos.labels[bank][nearest.indices], (nearest.values / TEMPERATURE).exp())
    return _accuracy(votes.argmax(1), photos.labels[queries])


def linear_probe(features: torch.Tensor, photos: LabelledPhotos) -> Accuracy:
    """Accuracy of logistic regression: fitted to the training photos, or cross-validated over the folds."""
    if photos.has_test_folder:
        test = photos.split == 0
        return _accuracy(_fit_and_predict(features, photos, ~test)[test], photos.labels[test])
    predicted = torch.empty_like(photos.labels)
    for fold in range(FOLDS):
        test = photos.split == fold
        if bool(test.any()):
            predicted[test] = _fit_and_predict(features, photos, ~test)[test]
    return _accuracy(predicted, photos.labels)


def majority_class(photos: LabelledPhotos) -> Accuracy:
    """The control: always the most frequent class."""
    labels = photos.labels[photos.split == 0] if photos.has_test_folder else photos.labels
    return _accuracy(labels.mode().values.expand_as(labels), labels)


def _fit_and_predict(features: torch.Tensor, photos: LabelledPhotos, train: torch.Tensor) -> torch.Tensor:
    x, y = features.double(), photos.labels
    mean, std = x[train].mean(0), x[train].std(0).clamp_min(1e-6)
    x = (x - mean) / std / x.shape[1] ** 0.5
    weight = torch.zeros(x.shape[1], len(photos.classes), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(photos.classes), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x[train] @ weight + bias, y[train]) + WEIGHT_DECAY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (x @ weight.detach() + bias.detach()).argmax(1)


def _accuracy(predicted: torch.Tensor, labels: torch.Tensor) -> Accuracy:
    correct = (predicted == labels).double()
    accuracy = float(correct.mean())
    by_class = [float(correct[labels == label].mean()) for label in labels.unique()]
    error = (accuracy * (1 - accuracy) / len(labels)) ** 0.5
    return Accuracy(accuracy, float(np.mean(by_class)), error, len(labels))


# --- teachers ---


@dataclass(frozen=True)
class TeacherCosine:
    """Mean cosine to a teacher's tokens of one type, over the tokens that are not zero; NaN where all are.

    cosine: of the prediction. mean_feature: of the teacher's mean. standardised: of the prediction after the mean is
    subtracted.
    """

    teacher: str
    kind: str
    cosine: float
    mean_feature: float
    standardised: float


@torch.inference_mode()
def teacher_cosines(
    source: FeatureSource, teachers: Mapping[str, Teacher], paths: Sequence[Path], size_px: int, batch_size: int
) -> list[TeacherCosine]:
    """How well a distilled encoder's projectors predict teachers on photos.

    Of the teachers that it has projectors and statistics for: a file of a run with PHI-S norms has none.
    """
    encoder = source.distilled
    known = {} if encoder is None else {name: _projector_name(encoder, name) for name in teachers}
    known = {name: projector for name, projector in known.items() if projector in encoder.teacher_norms}
    if not known:
        return []
    sums: dict[tuple[str, str], torch.Tensor] = {}
    for first in range(0, len(paths), batch_size):
        images = load_crops(paths[first : first + batch_size], size_px, source.cell_px)
        grid = (images.shape[-2] // source.cell_px, images.shape[-1] // source.cell_px)
        for name, projector in known.items():
            teacher, norms = teachers[name], encoder.teacher_norms[projector].normalizers
            tokens = encoder.project(images, projector)
            predicted = {CLS: tokens.cls, PATCH: tokens.patches}
            outputs = teacher(images.to(tokens.cls.device), grid)
            for kind in [kind for kind in teacher.widths if kind in norms]:
                raw, weights = outputs[kind], token_weights(outputs, kind)
                if weights is not None:  # tokens that are not valid count as zero ones
                    raw = raw * (weights > 0)[..., None]
                norm = norms[kind]
                restored = predicted[kind] * norm.std.clamp(min=norm.MIN_STD) + norm.mean
                pairs = ((restored, raw), (norm.mean.expand_as(raw), raw), (predicted[kind], norm(raw)))
                sums[name, kind] = sums.get((name, kind), 0) + cosine_sums(pairs, raw)
    return [TeacherCosine(name, kind, *(total[:3] / total[3]).tolist()) for (name, kind), total in sums.items()]


def _projector_name(encoder: DistilledEncoder, teacher: str) -> str | None:
    names = (teacher, PUBLISHED_PROJECTORS.get(teacher, teacher))
    return next((name for name in names if name in encoder.teachers), None)
