"""Depth at places between pixels, without inventing surfaces across edges."""

from __future__ import annotations

import numpy as np

MAX_STEP = 0.05  # of the depth, between neighbouring pixels of one surface


def sample_depth(depth: np.ndarray, pixels: np.ndarray, max_step: float = MAX_STEP) -> np.ndarray:
    """(M,) depth z at `pixels` (M, 2), NaN where there is none.

    `depth` (H, W), no depth where it is not finite and positive. Bilinear in 1/z, which is linear in the pixel on a
    plane, over those of the four pixels around that have a depth. NaN outside the map, where the nearest pixel has no
    depth, and at a depth edge: where another one differs from it by more than `max_step` of its depth.
    """
    depth, pixels = np.asarray(depth, dtype=np.float64), np.asarray(pixels, dtype=np.float64)
    height, width = depth.shape
    inside = ((pixels > -0.5) & (pixels < [width - 0.5, height - 0.5])).all(-1)
    place = np.where(inside[:, None], pixels, 0).clip(0, [width - 1, height - 1])
    first = np.minimum(np.floor(place), [max(width - 2, 0), max(height - 2, 0)]).astype(int)
    share = place - first
    weights, values = [], []
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = np.minimum(first[:, 0] + dx, width - 1), np.minimum(first[:, 1] + dy, height - 1)
        weights.append(np.abs(1 - dx - share[:, 0]) * np.abs(1 - dy - share[:, 1]))
        values.append(depth[y, x])
    weight, z = np.stack(weights), np.stack(values)
    known = np.isfinite(z) & (z > 0)
    z = np.where(known, z, np.nan)
    nearest = weight.argmax(0), np.arange(len(pixels))
    at_edge = (known & (np.abs(z - z[nearest]) > max_step * z[nearest])).any(0)
    weight = np.where(known, weight, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(known, weight / z, 0).sum(0) / weight.sum(0)
        return np.where(inside & known[nearest] & ~at_edge, 1 / inverse, np.nan)
