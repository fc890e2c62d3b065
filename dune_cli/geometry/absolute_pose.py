"""The pose of a camera that sees known points: robust PnP."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dune_cli import optional
from dune_cli.geometry.cameras import backproject, project
from dune_cli.geometry.epipolar import cross_matrix
from dune_cli.geometry.poses import from_rotation_translation, inverse, transform_points


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


# The last step of robust PnP: the pose that fits its inliers best, and how well they determine it.


MIN_SIGMA = 0.1  # of a threshold: even a perfect fit says no more about the errors of single matches


@dataclass(frozen=True)
class RefinedPose:
    """`cam_from_world` (4, 4), `K` (3, 3) with the focal length that fits, where it was looked for, `errors_px` (M,)
    (inf behind the camera), `sigma_px` the error of a coordinate of a match, and the `covariance` (6, 6).

    The covariance is that of (w, c), the error of the camera's pose as seen from the world: true rotation =
    exp(w) @ world_from_cam rotation, w in radians about the world's axes, and true centre = centre + c in the world's
    units. `from_calibration` (6, 6) is the part of it that comes from cameras which are not quite what they were taken
    to be: those of the points, and this one.
    """

    cam_from_world: np.ndarray
    K: np.ndarray
    errors_px: np.ndarray
    sigma_px: float
    covariance: np.ndarray
    from_calibration: np.ndarray

    @property
    def rotation_std_deg(self) -> float:
        """Root of the summed variances of the rotation about three axes, in degrees."""
        return float(np.degrees(np.sqrt(np.trace(self.covariance[:3, :3]))))

    @property
    def position_std(self) -> np.ndarray:
        """(3,) standard deviations of the camera's centre along the world's axes."""
        return np.sqrt(np.diag(self.covariance)[3:])


def refine_absolute_pose(
    points_world: np.ndarray,
    pixels: np.ndarray,
    K: np.ndarray,
    cam_from_world: np.ndarray,
    threshold_px: float,
    focal_unknown: bool = False,
    shifts: np.ndarray | None = None,
    focal_sd: float = 0.0,
) -> RefinedPose | None:
    """Minimises the reprojection errors of `points_world` (M, 3) at `pixels` (M, 2) under a Cauchy loss (pycolmap), all
    of them inliers; with `focal_unknown` over one factor on K's focal lengths, too.

    The covariance is sigma^2 (J^T J)^-1 of the plain least squares at the solution (R. Hartley and A. Zisserman,
    "Multiple View Geometry", section 5.2), the focal length's share included, sigma from the residuals; plus
    what the pose does when the points are off together by one of the `shifts` (M, modes, 3), one standard deviation
    each, and when a known focal length is off by `focal_sd`, a share of it (a consider covariance: S. Schmidt, 1966).
    None where the points do not determine the pose: fewer than 6 (7), or all on one line.
    """
    pycolmap = optional.import_pycolmap("camera pose estimation")

    points_world, pixels = np.asarray(points_world, dtype=np.float64), np.asarray(pixels, dtype=np.float64)
    parameters = 7 if focal_unknown else 6
    if len(points_world) < parameters:
        return None
    centre = np.median(points_world, axis=0)
    spread = float(np.median(np.linalg.norm(points_world - centre, axis=1)))
    if not spread > 0:
        return None
    scaled = (points_world - centre) / spread
    rotation = cam_from_world[:3, :3]
    start = np.column_stack([rotation, (cam_from_world[:3, 3] + rotation @ centre) / spread])
    camera = pycolmap.Camera(model="PINHOLE", width=1, height=1, params=[K[0, 0], K[1, 1], K[0, 2], K[1, 2]])
    options = pycolmap.AbsolutePoseRefinementOptions()
    options.loss_function_scale, options.gradient_tolerance, options.print_summary = threshold_px / 2, 1e-8, False
    options.refine_focal_length, options.refine_extra_params = focal_unknown, False
    everyone = np.ones(len(scaled), dtype=bool)
    found = pycolmap.refine_absolute_pose(pycolmap.Rigid3d(start), pixels, scaled, everyone, camera, options)
    if found is None:
        return None
    refined = found["cam_from_world"].matrix()
    pose = from_rotation_translation(refined[:, :3], spread * refined[:, 3] - refined[:, :3] @ centre)
    if focal_unknown:
        factor = float(np.sqrt(camera.focal_length_x * camera.focal_length_y / (K[0, 0] * K[1, 1])))
        K = np.column_stack([K[:, :2] @ np.diag([factor, factor]), K[:, 2]])
    shifts = np.zeros((len(pixels), 0, 3)) if shifts is None else shifts
    focal_sd = 0.0 if focal_unknown else focal_sd
    return _measured(points_world, pixels, K, pose, threshold_px, parameters, spread, shifts, focal_sd)


def _measured(
    points_world: np.ndarray,
    pixels: np.ndarray,
    K: np.ndarray,
    cam_from_world: np.ndarray,
    threshold_px: float,
    parameters: int,
    length: float,
    shifts: np.ndarray,
    focal_sd: float,
) -> RefinedPose | None:
    points_cam = transform_points(cam_from_world, points_world)
    residuals = project(points_cam, K) - pixels
    errors = np.where(points_cam[:, 2] > 0, np.linalg.norm(residuals, axis=1), np.inf)
    near = errors < threshold_px
    if 2 * np.count_nonzero(near) <= parameters:
        return None
    freedom = 2 * np.count_nonzero(near) - parameters
    sigma = max(float(np.sqrt((residuals[near] ** 2).sum() / freedom)), MIN_SIGMA * threshold_px)
    jacobian = pose_jacobian(points_world[near], K, cam_from_world)
    offsets = project(points_cam[near], K) - K[:2, 2]
    by_centre = jacobian[..., 3:6]
    if parameters == 7:
        jacobian = np.concatenate([jacobian, offsets[..., None]], axis=-1)
    units = np.diag([1, 1, 1, length, length, length, 1][:parameters])  # numbers near 1, so that the rank shows
    stacked = jacobian.reshape(-1, parameters) @ units
    if np.linalg.matrix_rank(stacked, tol=1e-9 * np.linalg.norm(stacked)) < parameters:
        return None
    inverse_normal = units @ np.linalg.inv(stacked.T @ stacked) @ units
    # a point that moves does to its pixel what a camera does that moves the other way
    moved = np.einsum("mik,mjk->mij", by_centre, shifts[near])
    moved = np.concatenate([moved, -focal_sd * offsets[..., None]], axis=-1)
    steps = (inverse_normal @ jacobian.reshape(-1, parameters).T @ moved.reshape(-1, moved.shape[-1]))[:6]
    from_calibration = steps @ steps.T
    covariance = (sigma**2 * inverse_normal)[:6, :6] + from_calibration
    return RefinedPose(cam_from_world, K, errors, sigma, covariance, from_calibration)


def pose_jacobian(points_world: np.ndarray, K: np.ndarray, cam_from_world: np.ndarray) -> np.ndarray:
    """(M, 2, 6) derivatives of the pixels of `points_world` (M, 3) by (w, c) as in `RefinedPose`."""
    world_from_cam = inverse(cam_from_world)
    cam_from_world_rotation = cam_from_world[:3, :3]
    offsets = np.asarray(points_world, dtype=np.float64) - world_from_cam[:3, 3]
    x, y, z = np.moveaxis(offsets @ cam_from_world_rotation.T, -1, 0)
    zero = np.zeros_like(z)
    by_point = np.stack([np.stack([1 / z, zero, -x / z**2], -1), np.stack([zero, 1 / z, -y / z**2], -1)], -2)
    # x_cam = R^T exp(-w) (X - C - c)
    by_pose = np.concatenate(
        [cam_from_world_rotation @ cross_matrix(offsets), np.broadcast_to(-cam_from_world_rotation, (len(z), 3, 3))], -1
    )
    return K[:2, :2] @ by_point @ by_pose
