"""Whole photos to a network and its maps back to the photo's pixels."""

from __future__ import annotations

import numpy as np

from dune_cli.io.preprocess import Prepared


def fit(rgb: np.ndarray, largest_px: int) -> Prepared:
    """`rgb` (H, W, 3) uint8 with its long side reduced to `largest_px` (Lanczos), untouched where it is not longer.

    Nothing is cropped and nothing padded: for networks that take any sides.
    """
    from PIL import Image

    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"rgb must be (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")
    height, width = rgb.shape[:2]
    scale = min(1.0, largest_px / max(width, height))
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    if scale < 1:
        rgb = np.asarray(Image.fromarray(rgb).resize((new_width, new_height), Image.Resampling.LANCZOS))
    scale_x, scale_y = new_width / width, new_height / height
    network_from_image = np.array(
        [[scale_x, 0, 0.5 * scale_x - 0.5], [0, scale_y, 0.5 * scale_y - 0.5], [0, 0, 1]], np.float64
    )
    return Prepared(rgb.transpose(2, 0, 1).astype(np.float32) / np.float32(255), network_from_image)


def to_photo(values: np.ndarray, network_from_image: np.ndarray, width: int, height: int) -> np.ndarray:
    """A network's map (h, w) at the photo's pixels, (height, width) float32, bilinear.

    `network_from_image` (3, 3) scales and shifts, no more. NaN where the photo was cropped away; half a network pixel
    around the map takes its border's values.
    """
    rows, row_weight, row_seen = _along(height, values.shape[0], network_from_image[1, 1], network_from_image[1, 2])
    columns, weight, seen = _along(width, values.shape[1], network_from_image[0, 0], network_from_image[0, 2])
    values = values.astype(np.float32, copy=False)
    tall = _lerp(values[rows], values[rows + (row_weight > 0)], row_weight[:, None])
    out = _lerp(tall[:, columns], tall[:, columns + (weight > 0)], weight)
    out[~row_seen] = np.nan
    out[:, ~seen] = np.nan
    return out


def _along(length: int, cells: int, scale: float, shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Along one axis: the cell before each pixel, the weight of the next one, and whether the map reaches it."""
    position = scale * np.arange(length) + shift
    seen = (position >= -0.5 - 1e-9) & (position <= cells - 0.5 + 1e-9)
    position = position.clip(0, cells - 1)
    first = np.minimum(position.astype(np.int64), max(cells - 2, 0))
    return first, (position - first).astype(np.float32), seen


def _lerp(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return first + (second - first) * weight
