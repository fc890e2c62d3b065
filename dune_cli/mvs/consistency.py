"""Filters of depth maps: geometric consistency between views, speckles, and normals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dune_cli import optional
from dune_cli.geometry.cameras import pixel_grid
from dune_cli.geometry.depth_maps import sample_depth
from dune_cli.geometry.poses import inverse


@dataclass(frozen=True)
class PosedDepth:
    """A depth map with its camera: `depth` (H, W) z, NaN where unknown, `K` (3, 3) in its pixels, `world_from_cam`
    (4, 4)."""

    depth: np.ndarray
    K: np.ndarray
    world_from_cam: np.ndarray


@dataclass(frozen=True)
class Reprojection:
    """A view's pixels after projection into another view's depth map and back, both (H, W), NaN where the other view
    has no depth: `error_px`, the distance to the start, and `depth`, z of the other view's surface in this view."""

    error_px: np.ndarray
    depth: np.ndarray


def reproject(view: PosedDepth, other: PosedDepth) -> Reprojection:
    """Forward-backward reprojection of `view`'s points through `other`'s depth map (J. L. Schonberger et al.,
    "Pixelwise view selection for unstructured multi-view stereo", ECCV 2016, section 4.2; Y. Yao et al., "MVSNet",
    ECCV 2018, section 4.2)."""
    height, width = view.depth.shape
    other_from_view = inverse(other.world_from_cam) @ view.world_from_cam
    x, y = np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        x_other, y_other, z = _project_again(x, y, view.depth, view.K, other_from_view, other.K)
        pixels_other = np.stack([np.where(z > 0, x_other, np.nan), y_other], axis=-1)
        depth_other = sample_depth(other.depth, pixels_other)
        x_back, y_back, depth = _project_again(x_other, y_other, depth_other, other.K, inverse(other_from_view), view.K)
        return Reprojection(np.hypot(x_back - x, y_back - y), depth)


def _project_again(
    x: np.ndarray, y: np.ndarray, depth: np.ndarray, K: np.ndarray, other_from_cam: np.ndarray, K_other: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels (x, y) in another view of the points at `depth` z behind the pixels (x, y), and their z there; the
    arrays are broadcast."""
    rows = K_other @ other_from_cam[:3, :3] @ np.linalg.inv(K)
    shift = K_other @ other_from_cam[:3, 3]
    u, v, z = ((row[0] * x + (row[1] * y + row[2])) * depth + s for row, s in zip(rows, shift))
    return u / z, v / z, z


def consistent_pixels(
    view: PosedDepth, reprojection: Reprojection, max_error_px: float, max_depth_error: float
) -> np.ndarray:
    """(H, W) bool: within both bounds; `max_depth_error` is a share of the depth."""
    with np.errstate(invalid="ignore"):
        near = np.abs(reprojection.depth - view.depth) <= max_depth_error * view.depth
        return near & (reprojection.error_px <= max_error_px)


def free_space_violations(view: PosedDepth, reprojection: Reprojection, share: float) -> np.ndarray:
    """(H, W) bool: where the other view's surface lies more than `share` of the depth behind the point, which would
    then occlude it."""
    with np.errstate(invalid="ignore"):
        return reprojection.depth > (1 + share) * view.depth


def hidden_points(view: PosedDepth, reprojection: Reprojection, share: float) -> np.ndarray:
    """(H, W) bool: where the other view's surface lies more than `share` of the depth before the point, and hides
    it."""
    with np.errstate(invalid="ignore"):
        return reprojection.depth < (1 - share) * view.depth


def remove_speckles(values: np.ndarray, max_step: float, min_pixels: int, levels: int) -> np.ndarray:
    """`values` (H, W) with NaN in connected components of fewer than `min_pixels` pixels. Adjacent pixels of a
    component differ by at most `max_step`, which is quantized in `levels` (fewer where 16 bits do not hold the
    range)."""
    cv2 = optional.require("cv2", "stereo matching")

    known = np.isfinite(values)
    if not known.any():
        return values
    low, high = values[known].min(), values[known].max()
    unit = max(max_step / levels, (high - low) / 30_000)
    unknown = -1000
    quantized = np.where(known, np.rint((np.where(known, values, low) - low) / unit), unknown).astype(np.int16)
    cv2.filterSpeckles(quantized, unknown, min_pixels, max(1, max_step / unit))
    return np.where(quantized >= 0, values, np.nan)


def normals_of_depth(depth: np.ndarray, K: np.ndarray, radius: int = 2, max_step: float = 0.03) -> np.ndarray:
    """(H, W, 3) unit normals towards the camera, in its frame, NaN where fewer than 5 pixels determine one.

    Least squares of a plane to each (2 radius + 1)^2 window in inverse depth, in which planes are linear in the pixel:
    1/z = (a, b, c) . (x, y, 1) has the normal -K^T (a, b, c). Pixels whose inverse depth differs by more than
    `max_step` a pixel (of the centre's) lie on another surface.
    """
    height, width = depth.shape
    inverse_depth = 1 / np.where(depth > 0, depth, np.nan)
    padded = np.pad(inverse_depth, radius, constant_values=np.nan)
    products = np.zeros((3, 3, height, width))
    right = np.zeros((3, height, width))
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            value = padded[radius + dy : radius + dy + height, radius + dx : radius + dx + width]
            with np.errstate(invalid="ignore"):
                near = np.abs(value - inverse_depth) <= max_step * max(abs(dx), abs(dy), 1) * inverse_depth
            offset = np.array([dx, dy, 1.0])
            products += np.outer(offset, offset)[..., None, None] * near
            right += offset[:, None, None] * np.where(near, value, 0)
    products, right = np.moveaxis(products, (0, 1), (2, 3)), np.moveaxis(right, 0, 2)
    enough = (products[..., 2, 2] >= 5) & (np.linalg.det(products) > 1e-6)
    plane = np.full((height, width, 3), np.nan)
    plane[enough] = np.linalg.solve(products[enough], right[enough][..., None])[..., 0]
    # the plane is about the window's centre: a x + b y + c with c the value there
    grid = pixel_grid(height, width)
    plane[..., 2] -= plane[..., 0] * grid[..., 0] + plane[..., 1] * grid[..., 1]
    normals = -plane @ np.asarray(K, dtype=np.float64)
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)
