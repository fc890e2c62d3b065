"""Photos to classes, by DINOv2's linear heads for ImageNet or a head of `dune train` (docs/file-formats.md,
`dune.classes/1`).
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dune_cli.io.photos import Photo
from dune_cli.io.preprocess import stretch
from dune_cli.models.dinov2_heads import Classifier
from dune_cli.models.heads import HeadedEncoder

SCHEMA = "dune.classes/1"
RESIZED_PX, CROP_PX = 256, 224
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class ClassScore:
    """A class, its name (None without a list of names for the head) and its probability."""

    index: int
    name: str | None
    wordnet_id: str | None
    score: float


def prepare(rgb: np.ndarray) -> np.ndarray:
    """`rgb` (H, W, 3) uint8 -> (3, 224, 224) float32 in [0, 1]: short side to 256 (bicubic), then the centre.

    The published evaluation (docs/models/dinov2-heads.md, "ImageNet"). Sides and corner are rounded as by torchvision.
    """
    from PIL import Image

    height, width = rgb.shape[:2]
    short, long = min(height, width), max(height, width)
    longer = int(RESIZED_PX * long / short)
    size = (RESIZED_PX, longer) if width <= height else (longer, RESIZED_PX)
    resized = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))
    top, left = (round((side - CROP_PX) / 2) for side in resized.shape[:2])
    crop = resized[top : top + CROP_PX, left : left + CROP_PX]
    return crop.transpose(2, 0, 1).astype(np.float32) / np.float32(255)


def predict(
    model: Classifier | HeadedEncoder, photo: Photo, count: int = 5, size_px: int | None = None
) -> list[ClassScore]:
    """The `count` most probable classes, best first.

    DINOv2's heads see the middle of the photo (`prepare`), a head of `dune train` the whole photo, `size_px` being the
    long side of its input (None: as many pixels as its training images have).
    """
    names: list[tuple[str | None, str]] | None = None
    if isinstance(model, HeadedEncoder):
        height, width = model.input_size(photo.height, photo.width, size_px)
        image = stretch(photo.rgb, width, height).image
        names = [(None, name) for name in model.class_names]
    else:
        image = prepare(photo.rgb)
    with torch.inference_mode():
        scores = model(torch.from_numpy(image)[None])[0].float().softmax(0).cpu()
    best = scores.topk(min(count, len(scores)))
    names = names or (imagenet_names() if model.classes == IMAGENET_CLASSES else None)
    classes = []
    for score, index in zip(best.values.tolist(), best.indices.tolist()):
        wordnet_id, name = names[index] if names else (None, None)
        classes.append(ClassScore(index, name, wordnet_id, score))
    return classes


def imagenet_names() -> list[tuple[str, str]] | None:
    """(WordNet id, name) of ImageNet-1k's classes, from the lists in timm (Apache-2.0); None without them.

    The files are read without importing timm, which takes seconds.
    """
    package = importlib.util.find_spec("timm")
    if package is None or not package.submodule_search_locations:
        return None
    folder = Path(package.submodule_search_locations[0]) / "data" / "_info"
    try:
        ids = (folder / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
        lines = (folder / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    names = dict(line.split("\t", 1) for line in lines if "\t" in line)
    if len(ids) != IMAGENET_CLASSES or not names.keys() >= set(ids):
        return None
    return [(wordnet_id, names[wordnet_id]) for wordnet_id in ids]


def document(photo: Photo, scores: list[ClassScore], provenance: dict[str, Any]) -> dict[str, Any]:
    """The JSON (`dune.classes/1`)."""
    named_by = None
    if any(score.name is not None for score in scores):
        imagenet = any(score.wordnet_id is not None for score in scores)
        named_by = "ImageNet-1k's WordNet lemmas in the package timm" if imagenet else "the weight file"
    return {
        "schema": SCHEMA,
        "image": {"path": str(photo.path), "width": photo.width, "height": photo.height},
        "classes": [
            {"id": score.index, "name": score.name, "wordnet_id": score.wordnet_id, "score": score.score}
            for score in scores
        ],
        "names_from": named_by,
        "provenance": provenance,
    }
