"""The pose of several pinhole views about one centre, such as those of a panorama, refined on all of their matches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dune_cli.geometry.absolute_pose import MIN_POINTS, RefinedPose, pixel_shifts, pose_covariance, pose_jacobian
from dune_cli.geometry.cameras import project
from dune_cli.geometry.poses import from_rotation_translation, inverse, rotation_from_rotvec, transform_points

STEPS = 20
SETTLED = 1e-10  # of a step: radians, and centres by the distance of the points
PARAMETERS = 6


def refine_central_pose(
    points_world: np.ndarray,
    pixels: np.ndarray,
    view: np.ndarray,
    rotations: Sequence[np.ndarray],
    K: np.ndarray,
    rig_from_world: np.ndarray,
    threshold_px: float,
    shifts: np.ndarray | None = None,
) -> RefinedPose | None:
    """Minimises the reprojection errors of `points_world` (M, 3) at `pixels` (M, 2) of pinhole cameras K (3, 3) under a
    Cauchy loss, by Gauss-Newton steps. Camera `view` (M,) is turned by its one of the `rotations` (3, 3), view from
    rig.

    The pose is `cam_from_world` of the rig; its covariance as in `refine_absolute_pose`, with the `shifts`
    (M, modes, 3) of the points. None with fewer than 6 points within the threshold, and where they do not determine the
    pose.
    """
    shifts = np.zeros((len(pixels), 0, 3)) if shifts is None else shifts
    world_from_rig = inverse(rig_from_world)
    for _ in range(STEPS):
        residuals, jacobian, near = _linearised(points_world, pixels, view, rotations, K, world_from_rig, threshold_px)
        if np.count_nonzero(near) < MIN_POINTS:
            return None
        weight = 1 / (1 + (residuals[near] ** 2).sum(-1) / (threshold_px / 2) ** 2)
        rows, errors = jacobian[near].reshape(-1, PARAMETERS), residuals[near].reshape(-1)
        weighted = np.repeat(weight, 2)[:, None] * rows
        distance = float(np.median(np.linalg.norm(points_world[near] - world_from_rig[:3, 3], axis=1)))
        units = np.diag([1.0, 1, 1, distance, distance, distance])
        normal = units @ rows.T @ weighted @ units
        if np.linalg.matrix_rank(normal, tol=1e-12 * np.linalg.norm(normal)) < PARAMETERS:
            return None
        step = np.linalg.solve(normal, -units @ weighted.T @ errors)
        turned = rotation_from_rotvec(step[:3]) @ world_from_rig[:3, :3]
        world_from_rig = from_rotation_translation(turned, world_from_rig[:3, 3] + distance * step[3:])
        if np.abs(step).max() < SETTLED:
            break
    residuals, jacobian, near = _linearised(points_world, pixels, view, rotations, K, world_from_rig, threshold_px)
    if 2 * np.count_nonzero(near) <= PARAMETERS:
        return None
    moved = pixel_shifts(jacobian[near][..., 3:], shifts[near])
    sigma, covariance, from_calibration = pose_covariance(residuals[near], jacobian[near], moved, units, threshold_px)
    errors = np.where(np.isfinite(residuals).all(-1), np.linalg.norm(residuals, axis=1), np.inf)
    return RefinedPose(inverse(world_from_rig), K, errors, sigma, covariance, from_calibration)


def _linearised(
    points_world: np.ndarray,
    pixels: np.ndarray,
    view: np.ndarray,
    rotations: Sequence[np.ndarray],
    K: np.ndarray,
    world_from_rig: np.ndarray,
    threshold_px: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Residuals (M, 2), NaN behind the camera, their derivatives (M, 2, 6) by the pose, and (M,) bool of those within
    the threshold."""
    residuals, jacobian = np.full((len(pixels), 2), np.nan), np.zeros((len(pixels), 2, PARAMETERS))
    rig_from_world = inverse(world_from_rig)
    for number, rotation in enumerate(rotations):
        cam_from_world = from_rotation_translation(rotation, np.zeros(3)) @ rig_from_world
        own = np.flatnonzero(view == number)
        own = own[transform_points(cam_from_world, points_world[own])[:, 2] > 0]
        if len(own):
            residuals[own] = project(transform_points(cam_from_world, points_world[own]), K) - pixels[own]
            jacobian[own] = pose_jacobian(points_world[own], K, cam_from_world)
    with np.errstate(invalid="ignore"):
        near = (residuals**2).sum(-1) < threshold_px**2
    return residuals, jacobian, near
