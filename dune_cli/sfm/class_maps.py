"""Class maps of photos by a segmentation head of `dune train`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from dune_cli.io.preprocess import Prepared, stretch
from dune_cli.models.heads import HeadedEncoder
from dune_cli.provenance import Run

MAX_LONG_SIDE_PX = 1280  # of a class map


def predict_classes(
    model: HeadedEncoder, rgb: np.ndarray, size_px: int | None, run: Run
) -> tuple[np.ndarray, tuple[int, int]]:
    """Class numbers (h, w) int64 of a photo (H, W, 3) uint8, at its size reduced to at most MAX_LONG_SIDE_PX, and the
    (height, width) of the network's input.

    `size_px`: long side of the input (None: as many pixels as the head's training images have). The logits are enlarged
    bilinearly.
    """
    with run.stage("prepare"):
        prepared = class_input(model, rgb, size_px)
    with run.stage("network"):
        (logits,) = class_logits(model, [prepared])
    with run.stage("resample"):
        return classes_at(logits, *rgb.shape[:2]), (prepared.height, prepared.width)


def class_input(model: HeadedEncoder, rgb: np.ndarray, size_px: int | None) -> Prepared:
    """A photo (H, W, 3) uint8 as the network takes it; size_px: see `predict_classes`."""
    height, width = model.input_size(*rgb.shape[:2], size_px)
    return stretch(rgb, width, height)


@torch.inference_mode()
def class_logits(model: HeadedEncoder, inputs: Sequence[Prepared]) -> list[torch.Tensor]:
    """The logits (1, classes, h, w) of each of the inputs, which have one size, by one pass."""
    logits = model(torch.from_numpy(np.stack([prepared.image for prepared in inputs])))
    return [logits[k, None] for k in range(len(inputs))]


@torch.inference_mode()
def classes_at(logits: torch.Tensor, height: int, width: int) -> np.ndarray:
    """Class numbers (h, w) int64 of a photo of `height` x `width` px, at its size reduced to at most
    MAX_LONG_SIDE_PX, by its logits (1, classes, ., .)."""
    scale = min(1.0, MAX_LONG_SIDE_PX / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].argmax(0).cpu().numpy()


def enlarged(classes: np.ndarray, height: int, width: int) -> np.ndarray:
    """A class map at another size (height, width), by repeating pixels."""
    if classes.shape == (height, width):
        return classes
    rows = (np.arange(height) * classes.shape[0]) // height
    columns = (np.arange(width) * classes.shape[1]) // width
    return classes[rows[:, None], columns]
