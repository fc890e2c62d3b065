"""Epipolar geometry of two calibrated views: essential matrix, relative pose from matches, errors of a pose.

NumPy, float64. Pixels are (x, y) with centres at integers. `cam2_from_cam1` maps points of camera 1 to camera 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dune_cli.geometry import poses

MIN_MATCHES = 8  # five determine a pose; the others verify it
CONVERGED = 1e-6  # relative change of the cost, which is about the number of matches
FAR = 3.0  # thresholds: no match farther off than that has a part in the refinement
RUNS = 8
# of an essential matrix's inliers, which its pose has in front of both cameras: below it they may lie in one plane
SHARE_IN_FRONT = 0.8


@dataclass(frozen=True)
class RelativePose:
    """`cam2_from_cam1` (4, 4) with a translation of length 1, and its `inliers` (M,) bool among the matches."""

    cam2_from_cam1: np.ndarray
    inliers: np.ndarray


def essential_from_pose(cam2_from_cam1: np.ndarray) -> np.ndarray:
    """E (..., 3, 3) = [t]x R of poses (..., 4, 4): x2' E x1 = 0 for normalised image points x1, x2."""
    pose = np.asarray(cam2_from_cam1, dtype=np.float64)
    return poses.cross_matrix(pose[..., :3, 3]) @ pose[..., :3, :3]


def normalised_points(points: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Pixels (..., M, 2) of cameras K (..., 3, 3) as homogeneous points (..., M, 3) on the plane z = 1."""
    return _homogeneous(points) @ np.swapaxes(np.linalg.inv(np.asarray(K, dtype=np.float64)), -1, -2)


def sampson_error_px(
    points1: np.ndarray, points2: np.ndarray, K1: np.ndarray, K2: np.ndarray, cam2_from_cam1: np.ndarray
) -> np.ndarray:
    """Sampson distance (..., M) in pixels of matches (..., M, 2) to a pose's epipolar geometry.

    To first order the distance that the two points of a match must move together to satisfy it (Hartley and Zisserman,
    section 11.4.3). It is measured in each image's own pixels, so that different focal lengths are taken into account.
    """
    return fundamental_error_px(points1, points2, fundamental_from_pose(cam2_from_cam1, K1, K2))


def fundamental_error_px(points1: np.ndarray, points2: np.ndarray, F: np.ndarray) -> np.ndarray:
    """Sampson distance (..., M) in pixels of matches (..., M, 2) to fundamental matrices (..., 3, 3)."""
    return np.abs(_sampson(points1, points2, F))


def fundamental_from_pose(cam2_from_cam1: np.ndarray, K1: np.ndarray, K2: np.ndarray) -> np.ndarray:
    """F (..., 3, 3) with p2' F p1 = 0 for homogeneous pixels."""
    inverse1, inverse2 = (np.linalg.inv(np.asarray(K, dtype=np.float64)) for K in (K1, K2))
    return np.swapaxes(inverse2, -1, -2) @ essential_from_pose(cam2_from_cam1) @ inverse1


def rotation_error(R_a: np.ndarray, R_b: np.ndarray) -> np.ndarray:
    """Angle (...) in radians between rotations (..., 3, 3), exact near 0 and near pi."""
    return poses.rotation_angle(np.swapaxes(np.asarray(R_a, dtype=np.float64), -1, -2) @ np.asarray(R_b))


def direction_error(t_a: np.ndarray, t_b: np.ndarray) -> np.ndarray:
    """Angle (...) in radians between directions (..., 3), exact near 0 and near pi; pi where one is zero."""
    is_zero = (np.linalg.norm(t_a, axis=-1) == 0) | (np.linalg.norm(t_b, axis=-1) == 0)
    return np.where(is_zero, np.pi, poses.vector_angle(t_a, t_b))


def pose_error(estimate: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and translation-direction error (...), radians, of poses (..., 4, 4)."""
    estimate, truth = np.asarray(estimate), np.asarray(truth)
    rotation = rotation_error(estimate[..., :3, :3], truth[..., :3, :3])
    return rotation, direction_error(estimate[..., :3, 3], truth[..., :3, 3])


def magsac_params(threshold: float, iterations: int, seed: int) -> Any:
    """cv2.UsacParams of MAGSAC scoring with sigma-consensus local optimisation (D. Barath et al., CVPR 2019 and 2020).

    One thread and a seeded generator: the same seed gives the same result."""
    import cv2

    params = cv2.UsacParams()
    params.score, params.loMethod = cv2.SCORE_METHOD_MAGSAC, cv2.LOCAL_OPTIM_SIGMA
    params.threshold, params.confidence, params.maxIterations = threshold, 0.9999, iterations
    params.randomGeneratorState = seed
    return params


def estimate_relative_pose(
    points1: np.ndarray,
    points2: np.ndarray,
    K1: np.ndarray,
    K2: np.ndarray,
    threshold_px: float | tuple[float, float] = 1.0,
    seed: int = 0,
) -> RelativePose | None:
    """Relative pose of two calibrated views from matches (M, 2) in pixels, some of them wrong.

    MAGSAC (OpenCV's USAC; Barath et al. 2019) on normalised points, the pose with the most inliers in front of both
    cameras, then a robust non-linear refinement. Where many of a matrix's inliers lie behind a camera, the poses of a
    homography are tried, too: a plane has two essential matrices that all of its matches satisfy, and MAGSAC finds
    either. `threshold_px`: the Sampson distance of an inlier, one number or one for each image (where they were matched
    at different scales). Deterministic.

    None with fewer than 8 matches, or where no pose has 8 inliers. ValueError for wrong shapes.
    """
    points1, points2 = (np.ascontiguousarray(p, dtype=np.float64) for p in (points1, points2))
    if points1.ndim != 2 or points1.shape[-1] != 2 or points1.shape != points2.shape:
        raise ValueError(f"matches must be two arrays (M, 2), not {points1.shape} and {points2.shape}")
    thresholds = np.broadcast_to(np.asarray(threshold_px, dtype=np.float64), (2,))
    if not (np.isfinite(thresholds).all() and thresholds.min() > 0):
        raise ValueError(f"the inlier threshold must be positive, not {threshold_px}")
    K1, K2 = np.asarray(K1, dtype=np.float64), np.asarray(K2, dtype=np.float64)
    if len(points1) < MIN_MATCHES:
        return None
    # in units of each image's threshold, so that an inlier's distance is 1 and both images have equal weights
    scale1, scale2 = (np.diag([1 / t, 1 / t, 1.0]) for t in thresholds)
    points1, points2, K1, K2 = points1 / thresholds[0], points2 / thresholds[1], scale1 @ K1, scale2 @ K2
    candidates = _essential_magsac(points1, points2, K1, K2, seed)
    rays1, rays2 = normalised_points(points1, K1), normalised_points(points2, K2)
    best, share = None, 1.0
    for E in candidates:
        inliers = np.abs(_sampson(points1, points2, np.linalg.inv(K2).T @ E @ np.linalg.inv(K1))) <= 1
        if inliers.sum() < MIN_MATCHES:
            continue
        pose, in_front = _pose_in_front(E, rays1, rays2, inliers)
        if best is None or in_front > best[1]:
            best, share = (pose, in_front), in_front / inliers.sum()
    if best is not None and share < SHARE_IN_FRONT:
        for pose in _poses_of_plane(points1, points2, K1, K2, seed):
            inliers = sampson_error_px(points1, points2, K1, K2, pose) <= 1
            in_front = int((inliers & _in_front(pose, rays1, rays2)).sum())
            if in_front > best[1]:
                best = pose, in_front
    if best is None or best[1] < MIN_MATCHES:
        return None
    pose = _refine(best[0], points1, points2, K1, K2)
    inliers = sampson_error_px(points1, points2, K1, K2, pose) <= 1
    inliers &= _in_front(pose, rays1, rays2)
    if inliers.sum() < MIN_MATCHES:
        return None
    return RelativePose(pose, inliers)


def best_relative_pose(
    points1: np.ndarray,
    points2: np.ndarray,
    K1: np.ndarray,
    K2: np.ndarray,
    thresholds_px: tuple[float, float],
    seed: int,
) -> tuple[RelativePose | None, list[RelativePose]]:
    """The best of RUNS of `estimate_relative_pose`, and the poses of all that found one.

    Half of the samplings run from either photo to the other, so that swapped photos have the same poses to choose from.
    The best pose has the least loss of `_refine`, which no match raises by more than one at FAR. On 76 pairs of other
    sequences than the ones that are reported, AUC@10 was .620 by one run (of matches in bfloat16), .621 by four, .625
    by eight, and it changed less with the seed.
    """
    runs = []
    for sampling in range(RUNS // 2 * seed, RUNS // 2 * (seed + 1)):
        forward = estimate_relative_pose(points1, points2, K1, K2, thresholds_px, sampling)
        backward = estimate_relative_pose(points2, points1, K2, K1, thresholds_px[::-1], sampling)
        if forward is not None:
            runs.append(forward)
        if backward is not None:
            runs.append(RelativePose(poses.inverse(backward.cam2_from_cam1), backward.inliers))
    # in units of each photo's threshold
    scaled1, scaled2 = (points / threshold for points, threshold in zip((points1, points2), thresholds_px))
    scaled_K1, scaled_K2 = (np.diag([1 / t, 1 / t, 1.0]) @ K for t, K in zip(thresholds_px, (K1, K2)))
    rays1, rays2 = normalised_points(scaled1, scaled_K1), normalised_points(scaled2, scaled_K2)

    def loss(run: RelativePose) -> float:
        errors = sampson_error_px(scaled1, scaled2, scaled_K1, scaled_K2, run.cam2_from_cam1)
        errors = np.where(_in_front(run.cam2_from_cam1, rays1, rays2), np.minimum(errors, FAR), FAR)
        return float(np.log1p((2 * errors) ** 2).sum())

    return min(runs, key=loss, default=None), runs


def _essential_magsac(
    points1: np.ndarray, points2: np.ndarray, K1: np.ndarray, K2: np.ndarray, seed: int
) -> list[np.ndarray]:
    import cv2

    # one Sampson threshold on the normalised plane, which equals 1 where both epipolar gradients are equal
    focal1, focal2 = (np.sqrt(abs(K[0, 0] * K[1, 1])) for K in (K1, K2))
    threshold = float(np.sqrt((focal1**-2 + focal2**-2) / 2))
    params = magsac_params(threshold, 10_000, seed)
    params.final_polisher = cv2.MAGSAC
    normalised1, normalised2 = normalised_points(points1, K1)[:, :2], normalised_points(points2, K2)[:, :2]
    eye = np.eye(3)
    try:
        E, _ = cv2.findEssentialMat(normalised1, normalised2, eye, eye, None, None, params)
    except cv2.error:  # some OpenCV versions throw for a degenerate set (all points equal)
        return []
    if E is None or E.size == 0 or E.shape[0] % 3 or not np.isfinite(E).all():
        return []
    return [E[i : i + 3] for i in range(0, len(E), 3)]


def _poses_of_plane(
    points1: np.ndarray, points2: np.ndarray, K1: np.ndarray, K2: np.ndarray, seed: int
) -> list[np.ndarray]:
    """The poses (4, 4) that explain the homography with the most inliers, at most four (E. Malis and M. Vargas,
    "Deeper understanding of the homography decomposition", 2007); none where the camera only turned."""
    import cv2

    try:
        H, _ = cv2.findHomography(points1, points2, magsac_params(2.0, 2000, seed))
    except cv2.error:  # some OpenCV versions throw for a degenerate set
        H = None
    if H is None or not np.isfinite(H).all() or abs(np.linalg.det(H)) < np.finfo(np.float64).tiny:
        return []
    _, rotations, translations, _ = cv2.decomposeHomographyMat(np.linalg.inv(K2) @ H @ K1, np.eye(3))
    lengths = [float(np.linalg.norm(t)) for t in translations]
    return [
        poses.from_rotation_translation(R, t[:, 0] / length)
        for R, t, length in zip(rotations, translations, lengths)
        if length > 1e-9
    ]


def fundamental_inliers(
    points1: np.ndarray, points2: np.ndarray, threshold_px: float, seed: int = 0, iterations: int = 10_000
) -> tuple[np.ndarray | None, np.ndarray]:
    """F (3, 3) by MAGSAC from pixels (M, 2), and its inliers (M,) bool; None and no inliers with fewer than 8 matches,
    or where none is found."""
    import cv2

    none = np.zeros(len(points1), dtype=bool)
    if len(points1) < MIN_MATCHES:
        return None, none
    params = magsac_params(threshold_px, iterations, seed)
    params.final_polisher = cv2.MAGSAC
    try:
        F, inliers = cv2.findFundamentalMat(np.ascontiguousarray(points1), np.ascontiguousarray(points2), params)
    except cv2.error:  # some OpenCV versions throw where all points are equal
        return None, none
    return (None, none) if F is None or F.shape != (3, 3) else (F, inliers.reshape(-1) > 0)


def _pose_in_front(E: np.ndarray, rays1: np.ndarray, rays2: np.ndarray, use: np.ndarray) -> tuple[np.ndarray, int]:
    """The one of E's four poses with the most points of `use` in front of both cameras, and their number."""
    U, _, Vt = np.linalg.svd(E)
    U, Vt = U * np.sign(np.linalg.det(U)), Vt * np.sign(np.linalg.det(Vt))
    W = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    best = np.eye(4), -1
    for R in (U @ W @ Vt, U @ W.T @ Vt):
        for t in (U[:, 2], -U[:, 2]):
            pose = poses.from_rotation_translation(R, t)
            count = int(_in_front(pose, rays1[use], rays2[use]).sum())
            if count > best[1]:
                best = pose, count
    return best


def _in_front(pose: np.ndarray, rays1: np.ndarray, rays2: np.ndarray) -> np.ndarray:
    """(M,) bool: whether the nearest points of rays (M, 3) lie in front of both cameras: z2 x2 = z1 R x1 + t."""
    rotated, t = rays1 @ pose[:3, :3].T, pose[:3, 3]
    aa, bb, ab = (rotated**2).sum(1), (rays2**2).sum(1), (rotated * rays2).sum(1)
    at, bt = rotated @ t, rays2 @ t
    return (ab * bt - bb * at > 0) & (aa * bt - ab * at > 0)


def _refine(
    pose: np.ndarray, points1: np.ndarray, points2: np.ndarray, K1: np.ndarray, K2: np.ndarray, iterations: int = 20
) -> np.ndarray:
    """Levenberg-Marquardt on the Sampson distances under a Cauchy loss of scale 1/2 (points in units of thresholds).

    Five parameters: a rotation applied after the pose's own, and a step of the unit translation in its tangent plane.
    """
    near = np.abs(_sampson(points1, points2, fundamental_from_pose(pose, K1, K2))) <= FAR
    views = _SampsonOfPose(points1[near], points2[near], K1, K2)
    damping = 1e-4
    residual, jacobian, tangent = views.linearised(pose)
    cost = np.log1p((2 * residual) ** 2).sum()
    for _ in range(iterations):
        weight = 1 / (1 + (2 * residual) ** 2)
        normal = (jacobian * weight) @ jacobian.T
        gradient = jacobian @ (weight * residual)
        while damping < 1e6:
            step = -np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-12), gradient)
            new_t = pose[:3, 3] + step[3:] @ tangent
            new_pose = poses.from_rotation_translation(
                poses.rotation_from_rotvec(step[:3]) @ pose[:3, :3], new_t / np.linalg.norm(new_t)
            )
            new_residual, new_jacobian, new_tangent = views.linearised(new_pose)
            new_cost = np.log1p((2 * new_residual) ** 2).sum()
            if new_cost < cost:
                break
            damping *= 10
        else:
            break
        converged = cost - new_cost < CONVERGED * cost
        pose, cost, damping = new_pose, new_cost, max(damping / 10, 1e-9)
        residual, jacobian, tangent = new_residual, new_jacobian, new_tangent
        if converged:
            break
    return pose


class _SampsonOfPose:
    """The Sampson distances of matches (M, 2) as a function of the pose: `_sampson`, with what does not depend on the
    pose computed once."""

    def __init__(self, points1: np.ndarray, points2: np.ndarray, K1: np.ndarray, K2: np.ndarray) -> None:
        self.rays1, self.rays2 = normalised_points(points1, K1), normalised_points(points2, K2)
        self.to_line1, self.to_line2 = (np.linalg.inv(K)[:, :2] for K in (K1, K2))
        self.generators = poses.cross_matrix(np.eye(3))

    def linearised(self, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Signed distances (M,), their derivatives (5, M) by a rotation vector applied after the pose's own rotation
        and by a step along the two `tangent` rows (2, 3) of the unit translation; and these rows."""
        tangent = _tangent(pose[:3, 3])
        cross = np.tensordot(np.concatenate([pose[None, :3, 3], tangent]), self.generators, 1)  # of the three vectors
        E = np.concatenate([cross[:1], cross[0] @ self.generators, cross[1:]]) @ pose[:3, :3]
        rotated = self.rays1 @ E.transpose(0, 2, 1)  # (6, M, 3)
        value = np.einsum("kmi,mi->km", rotated, self.rays2)
        lines = np.concatenate([rotated @ self.to_line2, self.rays2 @ E @ self.to_line1], axis=-1)
        length = np.sqrt(np.maximum((lines[0] ** 2).sum(-1), np.finfo(np.float64).tiny))
        distance = value[0] / length
        dlength = np.einsum("kmi,mi->km", lines[1:], lines[0]) / length
        return distance, (value[1:] - distance * dlength) / length, tangent


def _tangent(direction: np.ndarray) -> np.ndarray:
    """(2, 3): two unit rows that are orthogonal to a unit direction (3,) and to each other, by a Householder
    reflection."""
    axis = int(np.abs(direction).argmax())
    normal = direction.copy()
    normal[axis] += np.copysign(1.0, direction[axis])
    reflection = np.eye(3) - 2 / (normal @ normal) * np.outer(normal, normal)
    return reflection[[1, 2] if axis == 0 else [0, 2 if axis == 1 else 1]]


def _sampson(points1: np.ndarray, points2: np.ndarray, F: np.ndarray) -> np.ndarray:
    """Signed Sampson distances (..., M)."""
    x1, x2 = _homogeneous(points1), _homogeneous(points2)
    line2, line1 = x1 @ np.swapaxes(F, -1, -2), x2 @ F
    square = (line2[..., :2] ** 2).sum(-1) + (line1[..., :2] ** 2).sum(-1)
    return (x2 * line2).sum(-1) / np.sqrt(np.maximum(square, np.finfo(np.float64).tiny))


def _homogeneous(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, dtype=np.float64)
    return np.concatenate([points, np.ones_like(points[..., :1])], axis=-1)


# Scores that several benchmarks share.


def pose_auc(errors_deg: Sequence[float] | np.ndarray, thresholds_deg: Sequence[float] = (5, 10, 20)) -> list[float]:
    """Area under the recall curve up to each threshold, as a share of the threshold (Sarlin et al. 2020, SuperGlue).

    errors_deg (N,): the larger of a pose's rotation and translation-direction error; a failure is 180 or not finite.
    The curve goes in straight lines through (0, 0) and (i-th smallest error, i / N), and is flat from the last error
    below the threshold on; it is integrated exactly. ValueError for no errors, negative ones, or thresholds <= 0.
    """
    errors = np.nan_to_num(np.asarray(errors_deg, dtype=np.float64), nan=180, posinf=180)
    if errors.ndim != 1 or len(errors) == 0 or errors.min() < 0:
        raise ValueError(f"errors must be a list of numbers >= 0, not of shape {errors.shape}")
    if min(thresholds_deg) <= 0:
        raise ValueError(f"thresholds must be positive, not {list(thresholds_deg)}")
    errors = np.concatenate([[0.0], np.sort(errors)])
    recall = np.linspace(0, 1, len(errors))
    areas = []
    for threshold in thresholds_deg:
        below = np.searchsorted(errors, threshold)
        x = np.concatenate([errors[:below], [threshold]])
        y = np.concatenate([recall[:below], [recall[below - 1]]])
        areas.append(float(((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum() / threshold))
    return areas
