"""A mesh from a point map: neighbouring pixels become triangles, except across depth edges."""

from __future__ import annotations

import numpy as np

from dune_cli import optional

MAX_DEPTH_JUMP = 0.04  # of the nearest corner's depth


def grid_triangles(depth: np.ndarray, valid: np.ndarray, max_jump: float = MAX_DEPTH_JUMP) -> np.ndarray:
    """(F, 3) triangles as flat pixel indices y * W + x over a grid of `depth` (H, W), z in the view's camera.

    A triangle needs three `valid` (H, W) corners whose depths differ by at most `max_jump` of the nearest one's: a
    surface that jumps further is taken for two. A square is cut along the diagonal whose ends are closer in depth.
    Triangles are counter-clockwise seen from the camera.
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
    """The vertices that triangles use: their old indices (V,) ascending, and the triangles (F, 3) over the new ones."""
    kept, renumbered = np.unique(triangles, return_inverse=True)
    return kept, renumbered.reshape(triangles.shape)


def depth_edges(depth: np.ndarray, valid: np.ndarray, max_jump: float = 2 * MAX_DEPTH_JUMP) -> np.ndarray:
    """(H, W) bool: the pixels in whose 3x3 neighbourhood `valid` depths differ by more than `max_jump` of the nearest.

    A network smears depth edges over such pixels: their points hang in the air between two surfaces.
    """
    cv2 = optional.require("cv2", "finding depth edges")

    kernel = np.ones((3, 3), np.uint8)
    near = cv2.erode(np.where(valid, depth, np.inf), kernel, borderType=cv2.BORDER_REPLICATE)
    far = cv2.dilate(np.where(valid, depth, -np.inf), kernel, borderType=cv2.BORDER_REPLICATE)
    with np.errstate(invalid="ignore"):
        return valid & (far - near > max_jump * near)
