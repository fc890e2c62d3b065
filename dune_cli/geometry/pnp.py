"""The pose of a camera that sees known points: robust PnP."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dune_cli import optional
from dune_cli.geometry.cameras import backproject, project
from dune_cli.geometry.poses import from_rotation_translation, transform_points


@dataclass(frozen=True)
class AbsolutePose:
    """`cam_from_world` (4, 4), `inliers` (M,) and the root mean square reprojection error of the inliers in pixels."""

    cam_from_world: np.ndarray
    inliers: np.ndarray
    reprojection_error_px: float


def estimate_absolute_pose(
    points_world: np.ndarray,
    pixels: np.ndarray,
    K: np.ndarray,
    threshold_px: float,
    seed: int = 0,
    iterations: int = 5000,
) -> AbsolutePose | None:
    """Pose of the camera that sees `points_world` (M, 3) at `pixels` (M, 2): OpenCV's MAGSAC (D. Barath et al.,
    "MAGSAC++, a fast, reliable and accurate robust estimator", CVPR 2020), then Levenberg-Marquardt on the inliers
    twice. The same seed gives the same pose. None with fewer than 6 points or inliers.
    """
    cv2 = optional.require("cv2", "camera pose estimation")

    points_world, pixels = np.asarray(points_world, dtype=np.float64), np.asarray(pixels, dtype=np.float64)
    if len(points_world) < 6:
        return None
    # what OpenCV sees has unit-free axes of one focal length: skew and oblong pixels are taken out first
    focal_px = float(np.sqrt(abs(np.linalg.det(K[:2, :2]))))
    plain = np.diag([focal_px, focal_px, 1.0])
    plain_pixels = np.ascontiguousarray(focal_px * backproject(pixels, np.ones(len(pixels)), K)[:, :2])
    # points of one scene span a few baselines to kilometres; solvers want numbers near 1
    centre, spread = np.median(points_world, axis=0), float(np.median(np.abs(points_world - points_world.mean(0))))
    if not spread > 0:
        return None
    scaled = np.ascontiguousarray((points_world - centre) / spread)
    params = cv2.UsacParams()
    params.score, params.sampler, params.loMethod = cv2.SCORE_METHOD_MAGSAC, cv2.SAMPLING_UNIFORM, cv2.LOCAL_OPTIM_SIGMA
    params.threshold, params.confidence, params.maxIterations = threshold_px, 0.9999, iterations
    params.randomGeneratorState, params.isParallel = seed, False
    found, _, rotvec, translation, inliers = cv2.solvePnPRansac(scaled, plain_pixels, plain, None, params=params)
    if not found or inliers is None:
        return None
    keep = np.zeros(len(pixels), dtype=bool)
    keep[np.asarray(inliers).ravel()] = True
    for _ in range(2):
        if np.count_nonzero(keep) < 6:
            return None
        rotvec, translation = cv2.solvePnPRefineLM(scaled[keep], plain_pixels[keep], plain, None, rotvec, translation)
        cam_from_scaled = from_rotation_translation(cv2.Rodrigues(rotvec)[0], translation[:, 0])
        points_cam = transform_points(cam_from_scaled, scaled)
        errors = np.linalg.norm(project(points_cam, plain) - plain_pixels, axis=1)
        errors = np.where(points_cam[:, 2] > 0, errors, np.inf)
        keep = errors < threshold_px
    if np.count_nonzero(keep) < 6:
        return None
    rotation = cam_from_scaled[:3, :3]
    cam_from_world = from_rotation_translation(rotation, spread * cam_from_scaled[:3, 3] - rotation @ centre)
    return AbsolutePose(cam_from_world, keep, float(np.sqrt(np.mean(errors[keep] ** 2))))
