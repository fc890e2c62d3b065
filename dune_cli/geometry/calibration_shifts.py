"""Where points go when the cameras that they were triangulated from are not quite what they were taken to be."""

from __future__ import annotations

import numpy as np

from dune_cli.geometry.pose_covariance import pose_jacobian


def point_shifts(
    points_world: np.ndarray,
    tracks: np.ndarray,
    pixels: np.ndarray,
    K: np.ndarray,
    radial: np.ndarray,
    cam_from_world: np.ndarray,
    modes: np.ndarray,
) -> np.ndarray:
    """(P, M, 3) by how much each point moves with each of the `modes` (V, M, 10) of its V views, as in `Adjusted`.

    `tracks` (Q, 2) point and view of each observation at `pixels` (Q, 2) of the view's pinhole camera `K` (V, 3, 3),
    whose photo has a `radial` term (V,); `cam_from_world` (V, 4, 4). A photo's pixels stay where they are, so that its
    rays turn with its lens; the point goes where the rays then pass nearest, to first order.
    """
    count, amount = len(points_world), modes.shape[1]
    if not count or not amount:
        return np.zeros((count, amount, 3))
    square, side = np.zeros((count, 3, 3)), np.zeros((count, 3, amount))
    for view in np.unique(tracks[:, 1]):
        own = tracks[:, 1] == view
        point, mode = tracks[own, 0], modes[view]
        jacobian = pose_jacobian(points_world[point], K[view], cam_from_world[view])  # (q, 2, 6)
        plane = (pixels[own] - K[view][:2, 2]) @ np.linalg.inv(K[view][:2, :2]).T
        far = (plane**2).sum(-1)
        bend = 1 + 3 * radial[view] * far
        # along the ray from the principal point, and with the principal point
        stretch = -(np.outer(1 + radial[view] * far, mode[:, 0]) + np.outer(far, mode[:, 1])) / bend[:, None]
        moved = stretch[:, None] * (pixels[own] - K[view][:2, 2])[:, :, None] - mode[:, 2:4].T[None]  # (q, 2, M)
        residual = jacobian @ mode[:, 4:].T - moved
        by_point = -jacobian[:, :, 3:]
        np.add.at(square, point, np.einsum("qki,qkj->qij", by_point, by_point))
        np.add.at(side, point, np.einsum("qki,qkm->qim", by_point, residual))
    floor = 1e-12 * np.einsum("pii->p", square)[:, None, None] * np.eye(3)
    return -np.swapaxes(np.linalg.solve(square + floor + 1e-300 * np.eye(3), side), 1, 2)
