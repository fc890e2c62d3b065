"""Photos to class maps, by DINOv2's linear segmentation heads or a head of `dune train`.

The result is written as `dune.classmap/1` (docs/file-formats.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.io import png
from dune_cli.io.class_names import with_names
from dune_cli.io.photos import Photo, PhotoInfo
from dune_cli.io.png import save_png
from dune_cli.io.preprocess import Prepared, fit
from dune_cli.models.dinov2_heads import Segmenter
from dune_cli.models.heads import HeadedEncoder
from dune_cli.mvs.sky import SkyNetwork
from dune_cli.provenance import Run
from dune_cli.sfm.class_maps import (
    MAX_LONG_SIDE_PX,
    class_input,
    class_logits,
    classes_at,
    enlarged,
    predict_classes,
)

SCHEMA = "dune.classmap/1"
MAX_ASPECT = 4
SAID = 5  # classes of a summary
SKY, SKY_SIDE_PX = "sky", 224  # long side at which sky is looked for: as good as 448, in a third of the time


@dataclass(frozen=True)
class ClassMap:
    """classes (H, W) int64 at the photo's pixels; colors (N, 3) uint8 and names (empty if unknown) of the N classes.

    scales: the (height, width) of the predictions. mirrored: whether they include the horizontally flipped photo.
    """

    photo: Photo | PhotoInfo  # with pixels only for `write_overlay`
    classes: np.ndarray
    colors: np.ndarray
    names: tuple[str, ...]
    scales: tuple[tuple[int, int], ...]
    mirrored: bool


def sky_network(model: HeadedEncoder) -> SkyNetwork:
    """A segmentation head as what finds the sky of photos for dense maps. UserError where it has no such class."""
    if SKY not in model.class_names:
        raise UserError(f"{model.source.name} has no class {SKY!r}; its classes: {', '.join(model.class_names)}")
    index = model.class_names.index(SKY)

    def probability(rgb: np.ndarray) -> np.ndarray:
        (logits,) = class_logits(model, [class_input(model, rgb, SKY_SIDE_PX)])
        return torch.softmax(logits[0], 0)[index].float().cpu().numpy()

    return SkyNetwork(probability, tuple(model.sources))


def predict(
    model: Segmenter | HeadedEncoder,
    photo: Photo,
    scales: int | None = None,
    size_px: int | None = None,
    run: Run | None = None,
) -> ClassMap:
    """The photo's class map, by the head's published protocol with its first `scales` scales (None: all).

    Photos longer than `size_px` (None: 1280) are first reduced to it, which bounds the memory; their class map is
    enlarged by repeating pixels. The long side of a scale is at most four times its short side, which the published
    protocol does not bound.

    A head of `dune train` gets the whole photo at one scale; `size_px` is the long side of its input (None: as many
    pixels as its training images have), as `sfm.class_maps` says.
    """
    run = run or Run()
    if isinstance(model, HeadedEncoder):
        classes, size = predict_classes(model, photo.rgb, size_px, run)
        return _class_map_of_head(model, photo, classes, size)
    prepared = fit(photo.rgb, size_px or MAX_LONG_SIDE_PX)
    sizes = _bounded_sizes(model, photo, prepared, scales)
    with run.stage("network"), torch.inference_mode():
        probabilities = model.probabilities(torch.from_numpy(prepared.image)[None], sizes)
        classes = probabilities[0].argmax(0).cpu().numpy()
    classes = enlarged(classes, photo.height, photo.width)
    return ClassMap(photo, classes, _colors(model), model.class_names, tuple(sizes), model.protocol.flip)


def class_map_of_head(
    model: HeadedEncoder, photo: Photo | PhotoInfo, prepared: Prepared, logits: torch.Tensor
) -> ClassMap:
    """The class map by a head of `dune train`, of its `prepared` input and logits (1, classes, h, w)."""
    classes = classes_at(logits, photo.height, photo.width)
    return _class_map_of_head(model, photo, classes, (prepared.height, prepared.width))


def _class_map_of_head(
    model: HeadedEncoder, photo: Photo | PhotoInfo, classes: np.ndarray, size: tuple[int, int]
) -> ClassMap:
    classes = enlarged(classes, photo.height, photo.width)
    return ClassMap(photo, classes, _colors(model), model.class_names, (size,), False)


def _colors(model: Segmenter | HeadedEncoder) -> np.ndarray:
    return np.array(model.palette, np.uint8) if model.palette else png.class_colors(model.classes)


def _bounded_sizes(model: Segmenter, photo: Photo, prepared: Prepared, scales: int | None) -> list[tuple[int, int]]:
    sizes = model.sizes(prepared.height, prepared.width, scales)
    limits = [MAX_ASPECT * short for short in model.protocol.short_sides_px]
    if all(max(size) <= limit for size, limit in zip(sizes, limits)):
        return sizes
    console.note(
        f"{photo.path.name} is very elongated: its scales are bounded, which the published protocol does not do"
    )
    return [
        tuple(max(1, round(side * min(1, limit / max(size)))) for side in size) for size, limit in zip(sizes, limits)
    ]


def write(result: ClassMap, path: Path) -> None:
    """The class map as a palette PNG whose pixel values are the class numbers."""
    png.write_class_png(path, result.classes, result.colors)


def write_overlay(result: ClassMap, path: Path) -> None:
    """The photo with its classes' colours and names over it."""
    overlay = png.class_overlay(result.photo.rgb, result.classes, result.colors)
    save_png(path, with_names(overlay, result.classes, result.names))


def summary(result: ClassMap) -> str:
    """The largest classes with their shares, such as "tree 49 %, person 27 %"."""
    pixels = np.bincount(result.classes.ravel(), minlength=len(result.colors))
    largest = [index for index in np.argsort(-pixels, kind="stable")[:SAID] if pixels[index]]
    named = [result.names[index] if result.names else f"class {index}" for index in largest]
    return ", ".join(f"{name} {pixels[index] / pixels.sum():.0%}" for name, index in zip(named, largest))


def document(result: ClassMap, file: Path, overlay: Path | None, provenance: dict[str, Any]) -> dict[str, Any]:
    """The JSON beside the file (`dune.classmap/1`): the classes that occur, largest first."""
    pixels = np.bincount(result.classes.ravel(), minlength=len(result.colors))
    present = [index for index in np.argsort(-pixels, kind="stable") if pixels[index]]
    return {
        "schema": SCHEMA,
        "file": file.name,
        "overlay": overlay.name if overlay is not None else None,
        "image": {"path": str(result.photo.path), "width": result.photo.width, "height": result.photo.height},
        "classes_known": len(result.colors),
        "names_from": "the weight file" if result.names else None,
        "classes": [
            {
                "id": int(index),
                "name": result.names[index] if result.names else None,
                "color": result.colors[index],
                "pixels": int(pixels[index]),
                "share": float(pixels[index] / pixels.sum()),
            }
            for index in present
        ],
        "scales": [list(scale) for scale in result.scales],
        "mirrored": result.mirrored,
        "provenance": provenance,
    }
