"""Sim(3): similarities (rotation, translation, one scale) as 4x4 matrices named `a_from_b`, and fits to points.

The matrix is [s R | t]. numpy, float64, any leading dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dune_cli.geometry.poses import nearest_rotation, rotation_angle

MIN_STEP = 0.01  # of the largest step: smaller ones do not determine the scale


@dataclass(frozen=True)
class RobustSimilarity:
    """`a_from_b` (..., 4, 4), and `inlier_share` (...): the share of the weights that agree within the tolerance."""

    a_from_b: np.ndarray
    inlier_share: np.ndarray


def scale_of(a_from_b: np.ndarray) -> np.ndarray:
    """(...) the scale s of similarities (..., 4, 4)."""
    return np.cbrt(np.linalg.det(np.asarray(a_from_b, dtype=np.float64)[..., :3, :3]))


def rigid_part(a_from_b: np.ndarray) -> np.ndarray:
    """(..., 4, 4) the pose of the camera in a similarity `world_from_cam`: the rotation without scale, and the
    translation as it is, so that the camera keeps its centre."""
    pose = np.array(a_from_b, dtype=np.float64)
    pose[..., :3, :3] /= scale_of(pose)[..., None, None]
    return pose


def move_poses(new_from_old: np.ndarray, old_from_cam: np.ndarray) -> np.ndarray:
    """(..., 4, 4) rigid poses `new_from_cam` in a world that a similarity maps to."""
    return rigid_part(new_from_old @ np.asarray(old_from_cam, dtype=np.float64))


def similarity_from_points(
    points_a: np.ndarray, points_b: np.ndarray, weights: np.ndarray | None = None, with_scale: bool = True
) -> np.ndarray:
    """(..., 4, 4) `a_from_b` that minimises the weighted sum of squared distances of points (..., M, 3) in frame a.

    S. Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991, eq. 40
    to 43, with weights (..., M). Where all points coincide the scale is 1.
    """
    points_a, points_b = np.asarray(points_a, dtype=np.float64), np.asarray(points_b, dtype=np.float64)
    weights = np.ones(points_a.shape[:-1]) if weights is None else np.asarray(weights, dtype=np.float64)
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    mean_a, mean_b = ((weights[..., None] * p).sum(-2) for p in (points_a, points_b))
    centred_a, centred_b = points_a - mean_a[..., None, :], points_b - mean_b[..., None, :]
    covariance = np.swapaxes(weights[..., None] * centred_a, -1, -2) @ centred_b
    u, sizes, vt = np.linalg.svd(covariance)
    sign = np.ones(sizes.shape)
    sign[..., 2] = np.sign(np.linalg.det(u @ vt))
    rotation = (u * sign[..., None, :]) @ vt
    spread = (weights * (centred_b**2).sum(-1)).sum(-1)
    length = (sizes * sign).sum(-1)
    usable = with_scale & (spread > 0) & (length > 0)
    scale = np.where(usable, length / np.where(spread > 0, spread, 1.0), 1.0)
    result = np.zeros((*scale.shape, 4, 4))
    result[..., :3, :3] = scale[..., None, None] * rotation
    result[..., :3, 3] = mean_a - (result[..., :3, :3] @ mean_b[..., None])[..., 0]
    result[..., 3, 3] = 1.0
    return result


def similarity_from_poses(a_from_cam: np.ndarray, b_from_cam: np.ndarray) -> np.ndarray:
    """(4, 4) `a_from_b` between poses (N, 4, 4) of the same cameras, a robust initial estimate: the rotation is a
    reweighted mean of the cameras' rotations, the scale the median ratio of the distances between centres (1 where all
    coincide), the translation a median."""
    rotations = a_from_cam[:, :3, :3] @ np.swapaxes(b_from_cam[:, :3, :3], 1, 2)
    weights = np.ones(len(rotations))
    for _ in range(10):
        rotation = nearest_rotation((weights[:, None, None] * rotations).sum(0))
        weights = 1 / (1 + (rotation_angle(rotation.T @ rotations) / 0.1) ** 2) ** 2
    a, b = a_from_cam[:, :3, 3], b_from_cam[:, :3, 3] @ rotation.T
    i, j = np.triu_indices(len(rotations), 1)
    steps = [np.linalg.norm(centres[i] - centres[j], axis=1) for centres in (a, b)]
    # the distances of cameras that stand still are noise
    apart = np.all([step > MIN_STEP * step.max(initial=0) for step in steps], axis=0)
    scale = float(np.median(steps[0][apart] / steps[1][apart])) if apart.any() else 1.0
    result = np.eye(4)
    result[:3, :3] = scale * rotation
    result[:3, 3] = np.median(a - scale * b, axis=0)
    return result


def robust_similarity(
    points_a: np.ndarray,
    points_b: np.ndarray,
    weights: np.ndarray,
    sizes_a: np.ndarray,
    tolerance: float,
    with_scale: bool = True,
    iterations: int = 30,
    start: np.ndarray | None = None,
) -> RobustSimilarity:
    """As `similarity_from_points` where many points are wrong: Geman-McClure by reweighting, coarse to fine.

    `sizes_a` (..., M): the length in frame a that a point's residual is relative to (its depth, the scene's size).
    `tolerance`: the relative residual within which points agree. The kernel shrinks from the residuals of the first fit
    to the tolerance, as in H. Yang et al., "Graduated Non-Convexity for Robust Spatial Perception", RA-L 2020, section
    III. `start` (..., 4, 4): a similarity to begin at, instead of the first fit.
    """
    sizes_a = np.maximum(np.asarray(sizes_a, dtype=np.float64), 1e-12)
    base = np.asarray(weights, dtype=np.float64) / sizes_a**2
    kernel: np.ndarray | None = None
    factor = base
    for number in range(iterations):
        if number > 0 or start is None:
            fit = similarity_from_points(points_a, points_b, factor, with_scale)
        else:
            fit = start
        residuals = relative_residuals(fit, points_a, points_b, sizes_a)
        if kernel is None:
            kernel = np.maximum(3 * _weighted_median(residuals, weights), tolerance)
        factor = base / (1 + (residuals / kernel[..., None]) ** 2) ** 2
        kernel = np.maximum(0.7 * kernel, 0.5 * tolerance)
    inliers = (residuals < tolerance) * weights
    return RobustSimilarity(fit, inliers.sum(-1) / np.maximum(weights.sum(-1), 1e-300))


def relative_residuals(
    a_from_b: np.ndarray, points_a: np.ndarray, points_b: np.ndarray, sizes_a: np.ndarray
) -> np.ndarray:
    """(..., M) distances of points b to points a in frame a, as shares of `sizes_a` (..., M)."""
    transformed = points_b @ np.swapaxes(a_from_b[..., :3, :3], -1, -2) + a_from_b[..., None, :3, 3]
    return np.linalg.norm(transformed - points_a, axis=-1) / sizes_a


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(...) over the last axis."""
    order = np.argsort(values, axis=-1)
    share = np.cumsum(np.take_along_axis(np.broadcast_to(weights, values.shape), order, -1), axis=-1)
    middle = (share >= share[..., -1:] / 2).argmax(-1)
    return np.take_along_axis(np.take_along_axis(values, order, -1), middle[..., None], -1)[..., 0]
