"""Absolute pose: robust PnP from 2D-3D matches, refinement with covariance, and the evidence for a pose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dune_cli import optional
from dune_cli.geometry import two_view
from dune_cli.geometry.cameras import backproject, project
from dune_cli.geometry.epipolar import magsac_params
from dune_cli.geometry.pose_confidence import KNOWN_POINTS_DEG, NO_EVIDENCE, Evidence, coverage
from dune_cli.geometry.poses import cross_matrix, from_rotation_translation, inverse, transform_points

MIN_POINTS = 6
MIN_SIGMA = 0.1  # of a threshold: the error of a match is not taken to be smaller, however well the pose fits


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
    if len(points_world) < MIN_POINTS:
        return None
    # OpenCV gets a camera without skew, of one focal length
    focal_px = float(np.sqrt(abs(np.linalg.det(K[:2, :2]))))
    simple_K = np.diag([focal_px, focal_px, 1.0])
    simple_pixels = np.ascontiguousarray(focal_px * backproject(pixels, np.ones(len(pixels)), K)[:, :2])
    # and points with coordinates near 1
    centre, spread = np.median(points_world, axis=0), float(np.median(np.abs(points_world - points_world.mean(0))))
    if not spread > 0:
        return None
    scaled = np.ascontiguousarray((points_world - centre) / spread)
    params = magsac_params(threshold_px, iterations, seed)
    success, _, rotvec, translation, inliers = cv2.solvePnPRansac(scaled, simple_pixels, simple_K, None, params=params)
    if not success or inliers is None:
        return None
    keep = np.zeros(len(pixels), dtype=bool)
    keep[np.asarray(inliers).ravel()] = True
    for _ in range(2):
        if np.count_nonzero(keep) < MIN_POINTS:
            return None
        rotvec, translation = cv2.solvePnPRefineLM(
            scaled[keep], simple_pixels[keep], simple_K, None, rotvec, translation
        )
        cam_from_scaled = from_rotation_translation(cv2.Rodrigues(rotvec)[0], translation[:, 0])
        points_cam = transform_points(cam_from_scaled, scaled)
        errors = np.linalg.norm(project(points_cam, simple_K) - simple_pixels, axis=1)
        errors = np.where(points_cam[:, 2] > 0, errors, np.inf)
        keep = errors < threshold_px
    if np.count_nonzero(keep) < MIN_POINTS:
        return None
    rotation = cam_from_scaled[:3, :3]
    cam_from_world = from_rotation_translation(rotation, spread * cam_from_scaled[:3, 3] - rotation @ centre)
    return AbsolutePose(cam_from_world, keep, float(np.sqrt(np.mean(errors[keep] ** 2))))


# Refinement of a pose on its inliers, and its covariance.


@dataclass(frozen=True)
class RefinedPose:
    """`cam_from_world` (4, 4), `K` (3, 3) with the estimated focal length where it was unknown, `errors_px` (M,) (inf
    behind the camera), `sigma_px` the standard deviation of a match's coordinate, and the `covariance` (6, 6).

    The covariance is that of (w, c), the error of the camera's pose in the world: true rotation = exp(w) @
    world_from_cam rotation, w in radians about the world's axes, and true centre = centre + c in the world's units.
    `from_calibration` (6, 6) is the part of it that is due to errors of calibration: of the cameras that the points
    were triangulated with, and of this camera.
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
    """Minimises the reprojection errors of `points_world` (M, 3) at `pixels` (M, 2), all of them inliers, under a
    Cauchy loss (pycolmap). `focal_unknown`: one factor on K's focal lengths is estimated, too.

    The covariance is sigma^2 (J^T J)^-1 of the plain least squares at the solution (R. Hartley and A. Zisserman,
    "Multiple View Geometry", section 5.2), the focal length's share included, sigma from the residuals. Errors of
    calibration are added to it (a consider covariance: S. Schmidt, 1966): `shifts` (M, modes, 3) of the points, one
    standard deviation each, and the error `focal_sd` of a known focal length, a share of it. None where the points do
    not determine the pose: fewer than 6 (7), or all on one line.
    """
    pycolmap = optional.import_pycolmap("camera pose estimation")

    points_world, pixels = np.asarray(points_world, dtype=np.float64), np.asarray(pixels, dtype=np.float64)
    parameters = 7 if focal_unknown else 6
    if len(points_world) < parameters:
        return None
    centre, spread = _centre_and_spread(points_world)
    if not spread > 0:
        return None
    scaled = (points_world - centre) / spread
    rotation = cam_from_world[:3, :3]
    start = np.column_stack([rotation, (cam_from_world[:3, 3] + rotation @ centre) / spread])
    camera = pycolmap.Camera(model="PINHOLE", width=1, height=1, params=[K[0, 0], K[1, 1], K[0, 2], K[1, 2]])
    options = pycolmap.AbsolutePoseRefinementOptions()
    options.loss_function_scale, options.gradient_tolerance, options.print_summary = threshold_px / 2, 1e-8, False
    options.refine_focal_length, options.refine_extra_params = focal_unknown, False
    inliers = np.ones(len(scaled), dtype=bool)
    result = pycolmap.refine_absolute_pose(pycolmap.Rigid3d(start), pixels, scaled, inliers, camera, options)
    if result is None:
        return None
    refined = result["cam_from_world"].matrix()
    pose = from_rotation_translation(refined[:, :3], spread * refined[:, 3] - refined[:, :3] @ centre)
    if focal_unknown:
        factor = float(np.sqrt(camera.focal_length_x * camera.focal_length_y / (K[0, 0] * K[1, 1])))
        K = np.column_stack([K[:, :2] @ np.diag([factor, factor]), K[:, 2]])
    shifts = np.zeros((len(pixels), 0, 3)) if shifts is None else shifts
    focal_sd = 0.0 if focal_unknown else focal_sd
    return _with_covariance(points_world, pixels, K, pose, threshold_px, parameters, shifts, focal_sd)


def _centre_and_spread(points: np.ndarray) -> tuple[np.ndarray, float]:
    """The median of points (M, 3), and their median distance from it."""
    centre = np.median(points, axis=0)
    return centre, float(np.median(np.linalg.norm(points - centre, axis=1)))


def _with_covariance(
    points_world: np.ndarray,
    pixels: np.ndarray,
    K: np.ndarray,
    cam_from_world: np.ndarray,
    threshold_px: float,
    parameters: int,
    shifts: np.ndarray,
    focal_sd: float,
) -> RefinedPose | None:
    points_cam = transform_points(cam_from_world, points_world)
    residuals = project(points_cam, K) - pixels
    errors = np.where(points_cam[:, 2] > 0, np.linalg.norm(residuals, axis=1), np.inf)
    near = errors < threshold_px
    if 2 * np.count_nonzero(near) <= parameters:
        return None
    jacobian = pose_jacobian(points_world[near], K, cam_from_world)
    offsets = project(points_cam[near], K) - K[:2, 2]
    by_centre = jacobian[..., 3:6]
    if parameters == 7:
        jacobian = np.concatenate([jacobian, offsets[..., None]], axis=-1)
    _, spread = _centre_and_spread(points_world)
    units = np.diag([1, 1, 1, spread, spread, spread, 1][:parameters])  # numbers near 1, so that the rank is numerical
    stacked = jacobian.reshape(-1, parameters) @ units
    if np.linalg.matrix_rank(stacked, tol=1e-9 * np.linalg.norm(stacked)) < parameters:
        return None
    calibration_px = pixel_shifts(by_centre, shifts[near])
    calibration_px = np.concatenate([calibration_px, -focal_sd * offsets[..., None]], axis=-1)
    sigma, covariance, from_calibration = pose_covariance(
        residuals[near], jacobian, calibration_px, units, threshold_px
    )
    return RefinedPose(cam_from_world, K, errors, sigma, covariance, from_calibration)


def pixel_shifts(by_centre: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """(M, 2, modes) the changes of pixels with `shifts` (M, modes, 3) of their points, which are those with opposite
    shifts of the camera; `by_centre` (M, 2, 3): the derivatives by its centre."""
    return np.einsum("mik,mjk->mij", by_centre, shifts)


def pose_covariance(
    residuals: np.ndarray, jacobian: np.ndarray, calibration_px: np.ndarray, units: np.ndarray, threshold_px: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """Sigma of the `residuals` (M, 2), the covariance (6, 6) of the pose, and the share that the errors of calibration
    `calibration_px` (M, 2, modes), one standard deviation each, have in it; see `refine_absolute_pose`.

    `jacobian` (M, 2, P): derivatives by the P parameters, of which the pose's are the first six; with the diagonal
    matrix `units` (P, P) the numbers are near 1.
    """
    parameters = jacobian.shape[-1]
    sigma = float(np.sqrt((residuals**2).sum() / (residuals.size - parameters)))
    sigma = max(sigma, MIN_SIGMA * threshold_px)
    stacked = jacobian.reshape(-1, parameters) @ units
    inverse_normal = units @ np.linalg.inv(stacked.T @ stacked) @ units
    modes = calibration_px.reshape(residuals.size, -1) if calibration_px.size else np.zeros((residuals.size, 0))
    steps = (inverse_normal @ jacobian.reshape(-1, parameters).T @ modes)[:6]
    from_calibration = steps @ steps.T
    return sigma, (sigma**2 * inverse_normal)[:6, :6] + from_calibration, from_calibration


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


# PnP on the 2D-3D matches of several images, which may give one keypoint several points.


MIN_INLIERS = 12
SECOND_ITERATIONS = 1000  # of the search for a second pose
FOCAL_FACTORS = np.geomspace(0.5, 2.5, 9)  # on a guessed focal length


@dataclass(frozen=True)
class Matches2D3D:
    """Matches of a query's keypoints with points of the world, H of them.

    `keypoint` (H,): the index of the query's keypoint, below `count`. `pixels` (H, 2): its pixels in the query's
    pinhole camera. `points_world` (H, 3). `observations` (H,): how many map images see the point. `image` (H,): the map
    image that the match is from. `pixel_size`: pixels of the query per matched pixel. `shifts` (H, M, 3): the changes
    of the points with the map's calibration modes (None: these are unknown).
    """

    keypoint: np.ndarray
    pixels: np.ndarray
    points_world: np.ndarray
    observations: np.ndarray
    image: np.ndarray
    pixel_size: float
    shifts: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        pixels: np.ndarray,
        points_world: np.ndarray,
        image: np.ndarray,
        pixel_size: float,
        observations: np.ndarray | None = None,
        shifts: np.ndarray | None = None,
    ) -> Matches2D3D:
        """Matches less than half a matched pixel apart are of one keypoint. `observations` (H,) default to 1."""
        cells = np.rint(2 * pixels / pixel_size).astype(np.int64)
        keypoint = np.unique(cells, axis=0, return_inverse=True)[1].ravel()
        observations = np.ones(len(pixels), dtype=np.int64) if observations is None else observations
        return cls(keypoint, pixels, points_world, observations, image, pixel_size, shifts)

    @property
    def count(self) -> int:
        """The number of matched keypoints."""
        return int(self.keypoint.max(initial=-1)) + 1


@dataclass(frozen=True)
class PnPResult:
    """A pose and its `inliers` (H,) among the matches, of `keypoints` different keypoints; their median `distance` and
    root mean square error."""

    pose: RefinedPose
    inliers: np.ndarray
    keypoints: int
    distance: float
    error_px: float


def solve_pnp(
    matches: Matches2D3D,
    K: np.ndarray,
    threshold: float,
    focal_unknown: bool = False,
    focal_sd: float = 0.0,
    seed: int = 0,
) -> PnPResult | None:
    """The pose with the most inliers, refined on one match a keypoint: the one whose point most map images see.

    `threshold` of an inlier in matched pixels. `focal_unknown`: K's focal length is a guess, and is estimated.
    `focal_sd`: the standard deviation of a known one, as a share of it.
    """
    threshold_px = threshold * matches.pixel_size
    starts = []
    for factor in FOCAL_FACTORS if focal_unknown else (1.0,):
        K_start = np.column_stack([K[:, :2] * factor, K[:, 2]]) if focal_unknown else K
        pose = estimate_absolute_pose(matches.points_world, matches.pixels, K_start, threshold_px, seed)
        if pose is not None:
            starts.append((int(pose.inliers.sum()), -pose.reprojection_error_px, K_start, pose))
    if not starts:
        return None
    _, _, K, start = max(starts, key=lambda entry: entry[:2])
    cam_from_world, inliers, refined = start.cam_from_world, start.inliers, None
    for _ in range(3):
        rows = _one_per_keypoint(matches, inliers)
        shifts = None if matches.shifts is None else matches.shifts[rows]
        points, pixels = matches.points_world[rows], matches.pixels[rows]
        refined = refine_absolute_pose(points, pixels, K, cam_from_world, threshold_px, focal_unknown, shifts, focal_sd)
        if refined is None:
            return None
        K, cam_from_world = refined.K, refined.cam_from_world
        points_cam = transform_points(cam_from_world, matches.points_world)
        errors = np.linalg.norm(project(points_cam, K) - matches.pixels, axis=1)
        before, inliers = inliers, (points_cam[:, 2] > 0) & (errors < threshold_px)
        if np.array_equal(before, inliers):
            break
    distance = float(np.median(np.linalg.norm(points_cam[inliers], axis=1))) if inliers.any() else 1.0
    keypoints = len(np.unique(matches.keypoint[inliers]))
    near = refined.errors_px[refined.errors_px < threshold_px]
    return PnPResult(refined, inliers, keypoints, distance, float(np.sqrt(np.mean(near**2))))


def _one_per_keypoint(matches: Matches2D3D, inliers: np.ndarray) -> np.ndarray:
    """Indices of one inlier a keypoint: copies of one measurement would make the covariance too small."""
    index = np.flatnonzero(inliers)
    order = index[np.argsort(-matches.observations[index], kind="stable")]
    return order[np.unique(matches.keypoint[order], return_index=True)[1]]


def pnp_evidence(
    matches: Matches2D3D,
    result: PnPResult | None,
    size: tuple[int, int],
    threshold: float,
    focal_unknown: bool,
    seed: int = 0,
    tries: int = 1,
) -> Evidence:
    """The evidence for a pose of a photo of `size` (width, height). `tries`: how many rotated copies of the photo were
    matched."""
    log10_nfa = pnp_log10_nfa(matches, result, size, threshold, focal_unknown) + float(np.log10(tries))
    if result is None or not np.isfinite(log10_nfa):
        return NO_EVIDENCE
    # other matches of keypoints that are inliers do not speak for another pose
    rest = ~np.isin(matches.keypoint, matches.keypoint[result.inliers])
    other = None
    if np.count_nonzero(rest) >= MIN_INLIERS:
        other = estimate_absolute_pose(
            matches.points_world[rest],
            matches.pixels[rest],
            result.pose.K,
            threshold * matches.pixel_size,
            seed,
            SECOND_ITERATIONS,
        )
    second = 0 if other is None else len(np.unique(matches.keypoint[rest][other.inliers]))
    return Evidence(
        log10_nfa=log10_nfa,
        inlier_ratio=result.keypoints / matches.count,
        coverage=coverage(matches.pixels[result.inliers], size),
        second_motion=second / result.keypoints,
        repeatability_deg=result.pose.rotation_std_deg,
        parallax_deg=KNOWN_POINTS_DEG,
    )


def pnp_log10_nfa(
    matches: Matches2D3D, result: PnPResult | None, size: tuple[int, int], threshold: float, focal_unknown: bool
) -> float:
    """As `two_view.log10_nfa_pnp`, where a keypoint with several matches has as many chances, and every focal length is
    a try.

    Random pixels are taken to lie where the inliers do, not all over the photo: a camera far away sees the whole scene
    in one spot, and agrees with whatever matches lie there.
    """
    if result is None or result.keypoints < MIN_INLIERS:
        return float("inf")
    spread = np.linalg.det(np.cov(matches.pixels[result.inliers].T))
    area = min(float(size[0] * size[1]), 12 * float(np.sqrt(max(spread, 0.0))))  # of the rectangle with that spread
    threshold_px = threshold * matches.pixel_size * np.sqrt(len(matches.pixels) / matches.count)
    if area < 1:
        return float("inf")
    log10_tries = np.log10(len(FOCAL_FACTORS)) if focal_unknown else 0.0
    log10_nfa = two_view.log10_nfa_pnp(result.keypoints, matches.count, threshold_px, (area, 1.0))
    return float(log10_nfa + log10_tries)
