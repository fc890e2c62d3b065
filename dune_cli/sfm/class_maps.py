"""Class maps of photos by a segmentation head of `dune train`."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from dune_cli.io.preprocess import stretch
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
    height, width = rgb.shape[:2]
    with run.stage("prepare"):
        network_height, network_width = model.input_size(height, width, size_px)
        prepared = stretch(rgb, network_width, network_height)
    with run.stage("network"), torch.inference_mode():
        logits = model(torch.from_numpy(prepared.image)[None])
    with run.stage("resample"), torch.inference_mode():
        scale = min(1.0, MAX_LONG_SIDE_PX / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        classes = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].argmax(0).cpu().numpy()
    return classes, (network_height, network_width)


def enlarged(classes: np.ndarray, height: int, width: int) -> np.ndarray:
    """A class map at another size (height, width), by repeating pixels."""
    if classes.shape == (height, width):
        return classes
    rows = (np.arange(height) * classes.shape[0]) // height
    columns = (np.arange(width) * classes.shape[1]) // width
    return classes[rows[:, None], columns]
