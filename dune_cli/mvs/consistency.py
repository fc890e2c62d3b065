"""Do depth maps of different views agree? Points are looked up in another view's map and brought back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dune_cli.geometry.cameras import backproject, pixel_grid, project
from dune_cli.geometry.depth_maps import sample_depth
from dune_cli.geometry.poses import inverse, transform_points


@dataclass(frozen=True)
class DepthView:
    """A depth map: `depth` (H, W) z, NaN where unknown, `K` (3, 3) in its pixels, `world_from_cam` (4, 4)."""

    depth: np.ndarray
    K: np.ndarray
    world_from_cam: np.ndarray


@dataclass(frozen=True)
class Agreement:
    """Of one view's pixels with another view, all (H, W): `error_px` after the way there and back, `depth` z at the
    pixel that the other view's surface has; both NaN where the other view has no depth there."""

    error_px: np.ndarray
    depth: np.ndarray


def compare(view: DepthView, other: DepthView) -> Agreement:
    """Projects `view`'s points into `other`, takes the depth there, and projects that point back (J. L. Schonberger et
    al., "Pixelwise view selection for unstructured multi-view stereo", ECCV 2016, section 4.2; Y. Yao et al., "MVSNet",
    ECCV 2018, section 4.2)."""
    height, width = view.depth.shape
    error, depth = np.full((height, width), np.nan), np.full((height, width), np.nan)
    known = np.isfinite(view.depth)
    pixels = pixel_grid(height, width)[known]
    other_from_view = inverse(other.world_from_cam) @ view.world_from_cam
    there = transform_points(other_from_view, backproject(pixels, view.depth[known], view.K))
    before = there[:, 2] > 0
    at = project(np.where(before[:, None], there, [0.0, 0.0, 1.0]), other.K)
    seen = np.where(before, sample_depth(other.depth, at), np.nan)
    back = transform_points(inverse(other_from_view), backproject(at, seen, other.K))
    error[known] = np.linalg.norm(project(back, view.K) - pixels, axis=1)
    depth[known] = back[:, 2]
    return Agreement(error, depth)


def agreeing(view: DepthView, agreement: Agreement, max_error_px: float, max_depth_error: float) -> np.ndarray:
    """(H, W) bool: within both bounds; `max_depth_error` is a share of the depth."""
    with np.errstate(invalid="ignore"):
        near = np.abs(agreement.depth - view.depth) <= max_depth_error * view.depth
        return near & (agreement.error_px <= max_error_px)


def free_space_violations(view: DepthView, agreement: Agreement, share: float) -> np.ndarray:
    """(H, W) bool: where the other view sees a surface more than `share` of the depth behind the point, which then
    hangs in its line of sight."""
    with np.errstate(invalid="ignore"):
        return agreement.depth > (1 + share) * view.depth


def normals_of_depth(depth: np.ndarray, K: np.ndarray, radius: int = 2, max_step: float = 0.03) -> np.ndarray:
    """(H, W, 3) unit normals towards the camera, in its frame, NaN where fewer than 5 pixels say.

    Least squares of a plane to each (2 radius + 1)^2 window in inverse depth, in which planes are linear in the pixel:
    1/z = (a, b, c) . (x, y, 1) has the normal -K^T (a, b, c). Pixels whose inverse depth differs by more than
    `max_step` a pixel (of the centre's) lie on another surface.
    """
    height, width = depth.shape
    inverse_depth = 1 / np.where(depth > 0, depth, np.nan)
    padded = np.pad(inverse_depth, radius, constant_values=np.nan)
    sums = np.zeros((3, 3, height, width))
    right = np.zeros((3, height, width))
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            value = padded[radius + dy : radius + dy + height, radius + dx : radius + dx + width]
            with np.errstate(invalid="ignore"):
                near = np.abs(value - inverse_depth) <= max_step * max(abs(dx), abs(dy), 1) * inverse_depth
            place = np.array([dx, dy, 1.0])
            sums += np.outer(place, place)[..., None, None] * near
            right += place[:, None, None] * np.where(near, value, 0)
    sums, right = np.moveaxis(sums, (0, 1), (2, 3)), np.moveaxis(right, 0, 2)
    enough = (sums[..., 2, 2] >= 5) & (np.linalg.det(sums) > 1e-6)
    plane = np.full((height, width, 3), np.nan)
    plane[enough] = np.linalg.solve(sums[enough], right[enough][..., None])[..., 0]
    # the plane is about the window's centre: a x + b y + c with c the value there
    grid = pixel_grid(height, width)
    plane[..., 2] -= plane[..., 0] * grid[..., 0] + plane[..., 1] * grid[..., 1]
    normals = -plane @ np.asarray(K, dtype=np.float64)
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)
