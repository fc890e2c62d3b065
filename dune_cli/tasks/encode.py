"""Photos to features: an encoder's tokens, or its prediction of a teacher's.

The JSON is `dune.features/1` of docs/file-formats.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dune_cli.errors import UserError
from dune_cli.io.formats.npz import write_npz
from dune_cli.io.photos import Photo, PhotoInfo
from dune_cli.io.png import save_png
from dune_cli.io.preprocess import Prepared, prepare, stretch
from dune_cli.models.heads import input_size
from dune_cli.provenance import Run

SCHEMA = "dune.features/1"
SUFFIXES = (".npz", ".png")
FITS = ("crop", "stretch")


@dataclass(frozen=True)
class InputFit:
    """How a photo becomes a network input of whole patches.

    size_px: its long side; None: the encoder's native size. kind: "crop" resizes and cuts the border off (at most a
    patch), "stretch" resizes the whole photo to the nearest whole patches.
    """

    size_px: int | None = None
    kind: str = "crop"

    def __post_init__(self) -> None:
        if self.kind not in FITS:
            raise UserError(f"--fit {self.kind!r} is unknown; allowed: {', '.join(FITS)}")

    def prepared(self, rgb: np.ndarray, encoder: nn.Module) -> Prepared:
        """rgb (H, W, 3) uint8 as an input of the encoder."""
        size_px = self.size_px or encoder.native_size_px
        if self.kind == "crop":
            return prepare(rgb, size_px, encoder.patch)
        height, width = input_size(*rgb.shape[:2], encoder.patch, size_px, size_px)
        return stretch(rgb, width, height)


@dataclass(frozen=True)
class EncoderFeatures:
    """A photo's features: cls (D), registers (R, D), patches (h, w, D), float32, after the encoder's final norm.

    teacher: if given, the features are the encoder's prediction of that teacher, without registers.
    network_from_image: (3, 3) from the photo's pixels to those of the network's input, of h·patch x w·patch pixels.
    """

    path: Path
    sha256: str
    width: int
    height: int
    cls: np.ndarray
    registers: np.ndarray
    patches: np.ndarray
    patch: int
    network_from_image: np.ndarray
    teacher: str | None


def check_teacher(encoder: nn.Module, teacher: str | None) -> None:
    """UserError unless the encoder has a projector for `teacher`."""
    if teacher is not None and teacher not in encoder.teachers:
        allowed = ", ".join(encoder.teachers) or "none, its file carries no projectors"
        raise UserError(f"{encoder.source.name} predicts no teacher {teacher!r}; allowed: {allowed}")


def encode(
    encoder: nn.Module,
    photos: Iterable[Photo],
    fit: InputFit | int | None = None,
    teacher: str | None = None,
    batch_size: int = 1,
    run: Run | None = None,
) -> Iterator[EncoderFeatures]:
    """Features of each photo, in order. Consecutive photos of one prepared size share a batch of up to `batch_size`.

    fit: an `InputFit`, or the long side of its crop; None: the encoder's native size. teacher: predict this teacher's
    tokens. UserError for a teacher that the encoder has no projector for, or a photo that is less than one patch at
    that size.
    """
    check_teacher(encoder, teacher)
    run = run or Run()
    fit = fit if isinstance(fit, InputFit) else InputFit(fit)
    batch: list[tuple[Photo, Prepared]] = []
    for photo in photos:
        with run.stage("prepare"):
            prepared = fit.prepared(photo.rgb, encoder)
        if batch and (len(batch) == batch_size or batch[0][1].image.shape != prepared.image.shape):
            yield from forward(encoder, batch, teacher, run)
            batch = []
        batch.append((photo, prepared))
    if batch:
        yield from forward(encoder, batch, teacher, run)


def forward(
    encoder: nn.Module, batch: Sequence[tuple[Photo | PhotoInfo, Prepared]], teacher: str | None, run: Run
) -> Iterator[EncoderFeatures]:
    """Features of photos with their prepared inputs, which have one size, in one pass."""
    images = torch.from_numpy(np.stack([prepared.image for _, prepared in batch]))
    with run.stage("encode"), torch.inference_mode():
        tokens = encoder(images) if teacher is None else encoder.project(images, teacher)
        cls, registers, patches = (part.cpu().numpy() for part in (tokens.cls, tokens.registers, tokens.map()))
    for index, (photo, prepared) in enumerate(batch):
        yield EncoderFeatures(
            path=photo.path,
            sha256=photo.sha256,
            width=photo.width,
            height=photo.height,
            cls=cls[index],
            registers=registers[index],
            patches=patches[index],
            patch=encoder.patch,
            network_from_image=prepared.network_from_image,
            teacher=teacher,
        )


def pca_picture(patches: np.ndarray, patch: int) -> np.ndarray:
    """patches (h, w, D) -> (h·patch, w·patch, 3) uint8: the first three principal components as red, green, blue.

    The components are those of this photo's patches, each scaled from its 1st to its 99th percentile. Its sign makes
    its largest loading positive.
    """
    grid, width = patches.shape[:2], patches.shape[2]
    centred = patches.reshape(-1, width).astype(np.float64)
    centred -= centred.mean(0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, : -min(3, width) - 1 : -1]
    axes *= np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    values = np.zeros((len(centred), 3))
    values[:, : axes.shape[1]] = centred @ axes
    low, high = np.percentile(values, [1, 99], axis=0)
    scaled = (values - low) / np.where(high > low, high - low, 1)
    cells = (scaled.clip(0, 1) * 255).round().astype(np.uint8).reshape(*grid, 3)
    return cells.repeat(patch, 0).repeat(patch, 1)


def at_photo_size(cells: np.ndarray, features: EncoderFeatures) -> np.ndarray:
    """cells (h, w, 3), one a patch -> (height, width, 3): at each pixel of the photo the colour of its patch.

    Pixels outside the network's input (a cropped border) have the nearest patch's colour.
    """
    pixels = np.arange(max(features.width, features.height), dtype=np.float64)
    A = np.asarray(features.network_from_image, dtype=np.float64)
    index = [
        np.floor((A[axis, axis] * pixels[:count] + A[axis, 2] + 0.5) / features.patch).clip(
            0, cells.shape[1 - axis] - 1
        )
        for axis, count in ((0, features.width), (1, features.height))
    ]
    columns, rows = (axis_index.astype(np.intp) for axis_index in index)
    return cells[rows[:, None], columns]


def write(features: EncoderFeatures, path: Path) -> None:
    """The features as `.npz` (arrays cls, registers, patches) or their PCA picture as `.png`, of the photo's size."""
    if path.suffix.lower() == ".png":
        save_png(path, at_photo_size(pca_picture(features.patches, 1), features))
    else:
        write_npz(path, cls=features.cls, registers=features.registers, patches=features.patches)


def document(features: EncoderFeatures, file: Path, provenance: dict[str, Any]) -> dict[str, Any]:
    """The JSON beside the file (`dune.features/1`)."""
    h, w, width = features.patches.shape
    return {
        "schema": SCHEMA,
        "file": file.name,
        "image": {"path": str(features.path), "width": features.width, "height": features.height},
        "network": {
            "width": w * features.patch,
            "height": h * features.patch,
            "network_from_image": features.network_from_image,
        },
        "patch": features.patch,
        "grid": [h, w],
        "channels": width,
        "registers": len(features.registers),
        "teacher": features.teacher,
        "tokens": "after the final norm"
        if features.teacher is None
        else "projected to the teacher's standardised ones",
        "provenance": provenance,
    }
