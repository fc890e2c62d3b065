"""A photo in the middle of a black square, and the pixel transform back: what the human heads look at (spec 4)."""

from __future__ import annotations

import numpy as np

from dune_cli.io.preprocess import Prepared


def letterbox(rgb: np.ndarray, size_px: int) -> Prepared:
    """`rgb` (H, W, 3) uint8 of any shape -> a square of `size_px` with the whole photo in its middle.

    Bicubic, aspect kept (the short side is rounded, and is at least one pixel), black borders; where the borders
    cannot be equal the left or upper one is the smaller. `network_from_image` maps pixels with centres at integers.
    """
    from PIL import Image

    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"rgb must be (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")
    height, width = rgb.shape[:2]
    scale = size_px / max(width, height)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    resized = np.asarray(Image.fromarray(rgb).resize((new_width, new_height), Image.Resampling.BICUBIC))
    left, top = (size_px - new_width) // 2, (size_px - new_height) // 2
    square = np.zeros((size_px, size_px, 3), np.uint8)
    square[top : top + new_height, left : left + new_width] = resized
    image = square.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    return Prepared(image, _transform(new_width / width, new_height / height, left, top))


def _transform(scale_x: float, scale_y: float, left: int, top: int) -> np.ndarray:
    """x' = (x + 0.5) · scale - 0.5 + left, and y likewise."""
    return np.array(
        [[scale_x, 0, 0.5 * scale_x - 0.5 + left], [0, scale_y, 0.5 * scale_y - 0.5 + top], [0, 0, 1]], np.float64
    )
