"""The focal length that a point map implies."""

from __future__ import annotations

import numpy as np


def focal_from_point_map(
    points_cam: np.ndarray, pixels: np.ndarray, principal_point: np.ndarray, valid: np.ndarray, iterations: int = 50
) -> float | None:
    """Focal length in pixels (square pixels) of the camera that sees `points_cam` (..., 3) at `pixels` (..., 2).

    Starts at the weighted median of every point's own focal, which survives up to half of wrong points however far
    they lie, and then minimises the sum of distances |pixel - principal_point - focal * (x, y) / z| over the points
    near it by Weiszfeld's iterations, as S. Wang et al., "DUSt3R: Geometric 3D Vision Made Easy", CVPR 2024, section
    3.3. `valid` (...) picks the points to use; those with z <= 0 are left out. None with fewer than 10 points, or
    where they give no positive focal.
    """
    points_cam, pixels = np.asarray(points_cam, dtype=np.float64), np.asarray(pixels, dtype=np.float64)
    use = valid & (points_cam[..., 2] > 0) & np.isfinite(points_cam).all(-1)
    slopes = points_cam[use][:, :2] / points_cam[use][:, 2:]
    offsets = pixels[use] - principal_point
    along, square = (slopes * offsets).sum(-1), (slopes**2).sum(-1)
    usable = square > 1e-18
    if np.count_nonzero(usable) < 10:
        return None
    own = np.maximum(along[usable] / square[usable], 0)
    focal = _weighted_median(own, np.linalg.norm(offsets[usable], axis=-1))
    distances = np.linalg.norm(offsets - focal * slopes, axis=-1)
    near = distances <= 4 * np.median(distances)
    for _ in range(iterations):
        weights = near / np.maximum(distances, 1e-6)
        previous, focal = focal, float((weights * along).sum() / max((weights * square).sum(), 1e-30))
        if abs(focal - previous) <= 1e-9 * abs(focal):
            break
        distances = np.linalg.norm(offsets - focal * slopes, axis=-1)
    return focal if np.isfinite(focal) and focal > 0 else None


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    share = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(share, share[-1] / 2)])
