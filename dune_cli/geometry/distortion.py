"""The radial distortion that COLMAP calls SIMPLE_RADIAL: one term, x' = x (1 + k r²) on the plane z = 1.

`K` (3, 3); pixels (..., 2), centres at integers; float64. With k = 0 everything passes through untouched.
"""

from __future__ import annotations

import numpy as np


def distort_pixels(pixels: np.ndarray, K: np.ndarray, radial: float) -> np.ndarray:
    """(..., 2) where a camera with the term `radial` sees what an ideal one sees at `pixels`."""
    if radial == 0:
        return np.asarray(pixels, dtype=np.float64)
    plane, K = _to_plane(pixels, K)
    return _to_pixels(plane * (1 + radial * (plane**2).sum(-1, keepdims=True)), K)


def undistort_pixels(pixels: np.ndarray, K: np.ndarray, radial: float, iterations: int = 20) -> np.ndarray:
    """(..., 2) the inverse of `distort_pixels`, by Newton's method on the radius.

    Where a barrel distortion folds (no radius gives so large a one) the radius of the fold is returned.
    """
    if radial == 0:
        return np.asarray(pixels, dtype=np.float64)
    plane, K = _to_plane(pixels, K)
    bent = np.linalg.norm(plane, axis=-1, keepdims=True)
    fold = np.inf if radial > 0 else np.sqrt(-1 / (3 * radial))
    straight = np.minimum(bent, 0.999 * fold)
    for _ in range(iterations):
        slope = 1 + 3 * radial * straight**2
        straight = np.clip(straight - (straight + radial * straight**3 - bent) / slope, 0, 0.999 * fold)
    return _to_pixels(plane * np.where(bent > 0, straight / np.where(bent > 0, bent, 1), 1), K)


def _to_plane(pixels: np.ndarray, K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pixels, K = np.asarray(pixels, dtype=np.float64), np.asarray(K, dtype=np.float64)
    return (pixels - K[:2, 2]) / (K[0, 0], K[1, 1]), K


def _to_pixels(plane: np.ndarray, K: np.ndarray) -> np.ndarray:
    return plane * (K[0, 0], K[1, 1]) + K[:2, 2]
