"""Class maps of single photos against masks: `dune eval segment`.

Classes are compared by name: those that both the model and the masks have. Controls: the most frequent class, and the
most frequent class at each place of the photo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from dune_cli.errors import UserError
from dune_cli.io.photos import Photo, read_photo
from dune_cli.models.dinov2_heads import Segmenter
from dune_cli.models.heads import HeadedEncoder
from dune_cli.models.mosaic import CLASSES
from dune_cli.tasks import segment as segment_task
from dune_cli.teachers.registry import load_teacher
from dune_cli.training.heads.datasets import IGNORED, Dataset, Example
from dune_cli.training.heads.labels import LabelTeacher, read_label
from dune_cli.training.heads.metrics import class_iou, confusion, mean_iou

PLACES = (12, 16)  # rows and columns of the control that knows where classes are
MAJORITY, BY_PLACE = "majority class", "majority by place"
Predict = Callable[[Photo], np.ndarray]  # photo -> class numbers (H, W) of the benchmark's classes, IGNORED for others


@dataclass(frozen=True)
class SegmentationScore:
    """A method: mean IoU over the classes that the masks have, share of pixels that are right, IoU by class."""

    method: str
    photos: int
    mean_iou: float
    pixel_accuracy: float
    iou: Mapping[str, float]


def of_model(model: Segmenter | HeadedEncoder, names: Sequence[str], scales: int | None = None) -> Predict:
    """A model as `dune segment` runs it, its classes in the order of `names`. UserError where it has none of them."""
    own = model.class_names
    if not set(own) & set(names):
        raise UserError(f"{model.source.name} has none of the classes {', '.join(names[:5])}")
    numbers = np.array([names.index(name) if name in names else IGNORED for name in own], np.int64)

    def predict(photo: Photo) -> np.ndarray:
        return numbers[segment_task.predict(model, photo, scales).classes]

    return predict


def mosaic(names: Sequence[str], device: torch.device) -> Predict:
    """MOSAIC at 512 x 512, as it was trained. WeightsMissing where it is to be made first."""
    net = load_teacher("mosaic", device).net
    numbers = np.array([names.index(name) if name in names else IGNORED for name in CLASSES], np.int64)

    @torch.inference_mode()
    def predict(photo: Photo) -> np.ndarray:
        image = torch.from_numpy(np.array(photo.rgb)).permute(2, 0, 1)[None].to(device).float() / 255
        small = F.interpolate(image, size=(512, 512), mode="bilinear", align_corners=False, antialias=True)
        size = (photo.height, photo.width)
        logits = F.interpolate(net(small).logits, size=size, mode="bilinear", align_corners=False)
        return numbers[logits[0].argmax(0).cpu().numpy()]

    return predict


def true_classes(example: Example, photo: Photo, teacher: LabelTeacher | None) -> np.ndarray:
    """(H, W) class numbers of a photo's mask, or those that a teacher gives it."""
    if example.label is not None:
        return read_label(example, (photo.width, photo.height)).values.astype(np.int64)
    assert teacher is not None
    label = teacher.label(photo.rgb)
    assert label is not None
    logits = torch.from_numpy(label.values)[None].float()
    size = (photo.height, photo.width)
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].argmax(0).numpy()


def score_photos(
    dataset: Dataset, methods: Mapping[str, Predict], teacher: LabelTeacher | None = None
) -> Iterator[tuple[Example, dict[str, np.ndarray]]]:
    """The confusion matrix (true, predicted) of each method and photo; pixels of other classes are wrong.

    The last row and column of a matrix stand for predictions that are none of the classes.
    """
    classes = len(dataset.classes)
    for example in dataset.examples:
        photo = read_photo(example.photo)
        true = true_classes(example, photo, teacher)
        matrices = {}
        for name, predict in methods.items():
            found = predict(photo)
            matrices[name] = confusion(np.where(found == IGNORED, classes, found), true, classes + 1)
        yield example, matrices


def controls(dataset: Dataset, teacher: LabelTeacher | None = None) -> dict[str, Predict]:
    """What needs no network, learned from the truth itself: it is the best that such a control can be."""
    classes = len(dataset.classes)
    counts = np.zeros((classes, *PLACES))
    for example in dataset.examples:
        photo = read_photo(example.photo)
        true = torch.from_numpy(true_classes(example, photo, teacher))
        known = true != IGNORED
        flags = F.one_hot(torch.where(known, true, 0), classes).permute(2, 0, 1).float() * known
        counts += F.adaptive_avg_pool2d(flags[None], PLACES)[0].numpy()
    majority, by_place = int(counts.sum((1, 2)).argmax()), counts.argmax(0)

    def place(photo: Photo) -> np.ndarray:
        rows = (np.arange(photo.height) * PLACES[0]) // photo.height
        columns = (np.arange(photo.width) * PLACES[1]) // photo.width
        return by_place[rows[:, None], columns]

    return {MAJORITY: lambda photo: np.full((photo.height, photo.width), majority), BY_PLACE: place}


def total_score(method: str, matrices: Sequence[np.ndarray], names: Sequence[str]) -> SegmentationScore:
    """Over all photos, whose pixels are pooled, as the benchmarks of ADE20K and Cityscapes have it."""
    total = np.sum(matrices, axis=0)
    known = total.sum()
    iou = class_iou(total)[: len(names)]
    return SegmentationScore(
        method,
        len(matrices),
        mean_iou(total),
        float(np.trace(total) / max(known, 1)),
        {name: float(value) for name, value in zip(names, iou) if np.isfinite(value)},
    )
