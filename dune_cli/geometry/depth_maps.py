"""Depth maps: interpolation, meshing and edges, without surfaces across depth discontinuities."""

from __future__ import annotations

import numpy as np

from dune_cli import optional

MAX_STEP = 0.05  # of the depth, between neighbouring pixels of one surface
MAX_DEPTH_JUMP = 0.04  # of the nearest corner's depth, within a triangle


def sample_depth(depth: np.ndarray, pixels: np.ndarray, max_step: float = MAX_STEP) -> np.ndarray:
    """(M,) depth z at `pixels` (M, 2), NaN where it is unknown.

    `depth` (H, W), unknown where it is not finite and positive. Bilinear in 1/z, which is linear in the pixel on a
    plane, over those of the four pixels around that have a depth. NaN outside the map, where the nearest pixel has no
    depth, and at a depth edge: where another one differs from it by more than `max_step` of its depth.
    """
    depth, pixels = np.asarray(depth), np.asarray(pixels, dtype=np.float64)
    height, width = depth.shape
    x, y = pixels[..., 0], pixels[..., 1]
    inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
    x, y = np.where(inside, x, 0).clip(0, width - 1), np.where(inside, y, 0).clip(0, height - 1)
    column, row = np.minimum(np.floor(x), max(width - 2, 0)), np.minimum(np.floor(y), max(height - 2, 0))
    right, below = x - column, y - row  # shares of the pixels to the right and below
    first = (row * width + column).astype(np.intp)
    next_column, next_row = min(1, width - 1), width * min(1, height - 1)
    z_of = np.where(np.isfinite(depth) & (depth > 0), depth, np.nan).astype(np.float64).ravel()
    z = z_of.take(first + (right > 0.5) * next_column + (below > 0.5) * next_row)  # of the nearest pixel
    total, weights = np.zeros_like(x), np.zeros_like(x)
    tolerance = max_step * z
    kept = inside & np.isfinite(z)
    with np.errstate(divide="ignore", invalid="ignore"):
        for step, weight in (
            (0, (1 - right) * (1 - below)),
            (next_column, right * (1 - below)),
            (next_row, (1 - right) * below),
            (next_column + next_row, right * below),
        ):
            corner = z_of.take(first + step)
            known = np.isfinite(corner)
            kept &= ~(np.abs(corner - z) > tolerance)
            total += np.where(known, weight / corner, 0)
            weights += weight * known
        return np.where(kept, weights / total, np.nan)


def grid_triangles(depth: np.ndarray, valid: np.ndarray, max_jump: float = MAX_DEPTH_JUMP) -> np.ndarray:
    """(F, 3) triangles as flat pixel indices y * W + x over a grid of `depth` (H, W), z in the view's camera.

    A triangle needs three `valid` (H, W) corners whose depths differ by at most `max_jump` of the nearest one's. A
    square is split along the diagonal whose ends are closer in depth. Triangles are counter-clockwise as seen from the
    camera.
    """
    height, width = depth.shape
    index = np.arange(height * width).reshape(height, width)
    corners = [slice(None, -1), slice(1, None)]
    a, b, c, d = (index[rows, columns] for rows in corners for columns in corners)  # a b above c d
    flat = np.where(valid, depth, np.nan).ravel()
    with np.errstate(invalid="ignore"):
        along_bc = ~(np.abs(flat[a] - flat[d]) < np.abs(flat[b] - flat[c]))
    # where one corner is missing, the diagonal that avoids it leaves a triangle
    along_bc = np.where(np.isnan(flat[b]) | np.isnan(flat[c]), False, along_bc)
    along_bc = np.where(np.isnan(flat[a]) | np.isnan(flat[d]), True, along_bc)
    first = np.where(along_bc[..., None], np.stack([a, c, b], -1), np.stack([a, c, d], -1))
    second = np.where(along_bc[..., None], np.stack([b, c, d], -1), np.stack([a, d, b], -1))
    triangles = np.stack([first, second], axis=2).reshape(-1, 3)
    z = flat[triangles]
    near = z.min(axis=1)
    with np.errstate(invalid="ignore"):
        keep = (near > 0) & (z.max(axis=1) - near <= max_jump * near)
    return triangles[keep]


def used_vertices(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vertices that triangles use: their indices (V,) ascending, and the triangles (F, 3) over these."""
    kept, renumbered = np.unique(triangles, return_inverse=True)
    return kept, renumbered.reshape(triangles.shape)


def depth_edges(depth: np.ndarray, valid: np.ndarray, max_jump: float = 2 * MAX_DEPTH_JUMP) -> np.ndarray:
    """(H, W) bool: the pixels in whose 3x3 neighbourhood `valid` depths differ by more than `max_jump` of the nearest.

    Networks blur depth edges over such pixels: their points lie between two surfaces.
    """
    cv2 = optional.require("cv2", "finding depth edges")

    kernel = np.ones((3, 3), np.uint8)
    near = cv2.erode(np.where(valid, depth, np.inf), kernel, borderType=cv2.BORDER_REPLICATE)
    far = cv2.dilate(np.where(valid, depth, -np.inf), kernel, borderType=cv2.BORDER_REPLICATE)
    with np.errstate(invalid="ignore"):
        return valid & (far - near > max_jump * near)
