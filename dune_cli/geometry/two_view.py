"""Two calibrated views: triangulation, bundle adjustment, pure rotation, and a-contrario tests.

The world is camera 1. `K1`, `K2` (3, 3); pixels (M, 2), centres at integers; points (M, 3) in camera 1's frame.
float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lgamma, log, pi

import numpy as np

from dune_cli import optional
from dune_cli.geometry.cameras import backproject, project
from dune_cli.geometry.poses import inverse, nearest_rotation, transform_points, vector_angle

FOCAL_FACTORS = np.geomspace(0.4, 2.5, 25)  # on a guessed focal length


@dataclass(frozen=True)
class TwoViewGeometry:
    """A refined pair: `cam2_from_cam1` (4, 4) with unit baseline. For each match its point `points_cam1` (M, 3),
    whether it is `valid` (M,), and `errors_px` (M,), the larger of its two reprojection errors (inf where not valid).
    """

    cam2_from_cam1: np.ndarray
    points_cam1: np.ndarray
    valid: np.ndarray
    errors_px: np.ndarray

    @property
    def reprojection_error_px(self) -> float:
        """Root mean square over the valid points and both views."""
        return float(np.sqrt(np.mean(self.errors_px[self.valid] ** 2))) if self.valid.any() else float("inf")


def triangulate(
    pixels1: np.ndarray, pixels2: np.ndarray, K1: np.ndarray, K2: np.ndarray, cam2_from_cam1: np.ndarray
) -> np.ndarray:
    """(M, 3) points in camera 1's frame by the linear method on unit-depth rays (Hartley and Zisserman, 12.2).

    Parallel rays meet at infinity: such a point has inf or very large coordinates.
    """
    rays1, rays2 = _rays(pixels1, K1), _rays(pixels2, K2)
    P1, P2 = np.eye(3, 4), np.asarray(cam2_from_cam1, dtype=np.float64)[:3]
    rows = [r[:, i, None] * P[2] - r[:, 2, None] * P[i] for r, P in ((rays1, P1), (rays2, P2)) for i in (0, 1)]
    homogeneous = np.linalg.svd(np.stack(rows, axis=1))[2][:, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        return homogeneous[:, :3] / homogeneous[:, 3:]


def reprojection_errors(
    points_cam1: np.ndarray,
    pixels1: np.ndarray,
    pixels2: np.ndarray,
    K1: np.ndarray,
    K2: np.ndarray,
    cam2_from_cam1: np.ndarray,
) -> np.ndarray:
    """(M,) the larger of the two views' reprojection errors in pixels; inf for a point behind a camera."""
    points_cam2 = transform_points(cam2_from_cam1, points_cam1)
    error1 = np.linalg.norm(project(points_cam1, K1) - pixels1, axis=-1)
    error2 = np.linalg.norm(project(points_cam2, K2) - pixels2, axis=-1)
    error = np.maximum(error1, error2)
    in_front = (points_cam1[:, 2] > 0) & (points_cam2[:, 2] > 0) & np.isfinite(error)
    return np.where(in_front, error, np.inf)


def parallax_angles(points_cam1: np.ndarray, cam2_from_cam1: np.ndarray) -> np.ndarray:
    """(M,) angle in radians between the rays of each point to both cameras."""
    centre2 = inverse(cam2_from_cam1)[:3, 3]
    return vector_angle(points_cam1, points_cam1 - centre2)


def refine(
    pixels1: np.ndarray,
    pixels2: np.ndarray,
    K1: np.ndarray,
    K2: np.ndarray,
    cam2_from_cam1: np.ndarray,
    threshold_px: float,
) -> TwoViewGeometry:
    """Two-view bundle adjustment (pycolmap, Cauchy loss) of pose and points with fixed intrinsics, twice: the second
    time on the matches that lie within `threshold_px` in both views and in front of both cameras.

    Focal lengths are not refined, because two views hardly determine them together with pose and points.
    """
    arrays = [np.ascontiguousarray(a, dtype=np.float64) for a in (pixels1, pixels2, K1, K2)]
    pose = np.asarray(cam2_from_cam1, dtype=np.float64)
    points = triangulate(*arrays, pose)
    errors = reprojection_errors(points, *arrays, pose)
    keep = errors < 4 * threshold_px
    for _ in range(2):
        if np.count_nonzero(keep) < 6:
            break
        pose, points[keep] = _bundle_adjust(arrays[0][keep], arrays[1][keep], K1, K2, pose, points[keep], threshold_px)
        points = np.where(keep[:, None], points, triangulate(*arrays, pose))
        errors = reprojection_errors(points, *arrays, pose)
        keep = errors < threshold_px
    errors = np.where(keep, errors, np.inf)
    return TwoViewGeometry(pose, np.where(keep[:, None], points, np.nan), keep, errors)


def _bundle_adjust(
    pixels1: np.ndarray,
    pixels2: np.ndarray,
    K1: np.ndarray,
    K2: np.ndarray,
    cam2_from_cam1: np.ndarray,
    points: np.ndarray,
    loss_scale_px: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Pose with unit baseline and points (M, 3) after one solve, in one thread so that runs are bit-identical."""
    pycolmap = optional.import_pycolmap("bundle adjustment")

    scene = pycolmap.Reconstruction()
    poses = (np.eye(4), cam2_from_cam1)
    for index, (K, pixels, pose) in enumerate(zip((K1, K2), (pixels1, pixels2), poses), start=1):
        # COLMAP's PINHOLE has no skew: that of K is removed from the pixels, so that the rays are the same
        fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
        unskewed = np.stack([pixels[:, 0] - K[0, 1] * (pixels[:, 1] - cy) / fy, pixels[:, 1]], axis=1)
        camera = pycolmap.Camera(model="PINHOLE", width=1, height=1, params=[fx, fy, cx, cy], camera_id=index)
        scene.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(name=str(index), keypoints=unskewed, camera_id=index, image_id=index)
        scene.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose[:3]))
    point_ids = []
    for number, point in enumerate(points):
        track = pycolmap.Track()
        track.add_element(1, number)
        track.add_element(2, number)
        point_ids.append(scene.add_point3D(point, track))
    config = pycolmap.BundleAdjustmentConfig()
    for index in (1, 2):
        config.add_image(index)
        config.set_constant_cam_intrinsics(index)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.loss_function_scale = loss_scale_px
    options.ceres.solver_options.num_threads = 1
    options.ceres.solver_options.function_tolerance = 1e-10
    pycolmap.create_default_bundle_adjuster(options, config, scene).solve()
    world_from_1, world_from_2 = (
        inverse(np.vstack([scene.image(i).cam_from_world().matrix(), [0, 0, 0, 1]])) for i in (1, 2)
    )
    pose = inverse(world_from_2) @ world_from_1
    points_cam1 = transform_points(inverse(world_from_1), np.array([scene.point3D(i).xyz for i in point_ids]))
    length = np.linalg.norm(pose[:3, 3])
    pose[:3, 3] /= length
    return pose, points_cam1 / length


def rotation_only(
    pixels1: np.ndarray, pixels2: np.ndarray, K1: np.ndarray, K2: np.ndarray, iterations: int = 20
) -> tuple[np.ndarray, np.ndarray]:
    """The rotation that explains the motion best without a translation.

    Pixels (..., M, 2), K1, K2 (..., 3, 3). Returns `cam2_from_cam1` (..., 3, 3) and the residuals (..., M) in pixels of
    view 2. Iteratively reweighted (Geman-McClure), each step in closed form (Kabsch).
    """
    rays1, rays2 = (r / np.linalg.norm(r, axis=-1, keepdims=True) for r in (_rays(pixels1, K1), _rays(pixels2, K2)))
    weights = np.ones(rays1.shape[:-1])
    for _ in range(iterations):
        rotation = nearest_rotation(np.swapaxes(rays2 * weights[..., None], -1, -2) @ rays1)
        rotated = rays1 @ np.swapaxes(rotation, -1, -2)
        residuals = np.linalg.norm(project(rotated, K2) - pixels2, axis=-1)
        residuals = np.where((rotated[..., 2] > 0) & np.isfinite(residuals), residuals, np.inf)
        scale = np.maximum(np.median(residuals, axis=-1, keepdims=True), 0.25)
        with np.errstate(over="ignore"):
            weights = 1 / (1 + (residuals / (2 * scale)) ** 2) ** 2
    return rotation, residuals


def rotation_only_any_focal(
    pixels1: np.ndarray, pixels2: np.ndarray, K1: np.ndarray, K2: np.ndarray, factors: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """As `rotation_only` where the focal lengths are guesses: the factor on both with the smallest median residual, and
    its residuals (M,). With a wrong focal length a pure rotation has residuals like those of a translation."""
    factors = np.concatenate([[1.0], FOCAL_FACTORS]) if factors is None else factors
    residuals = rotation_only_by_focal(pixels1, pixels2, K1, K2, factors)
    best = int(np.argmin(np.median(residuals, axis=1)))
    return float(factors[best]), residuals[best]


def rotation_only_by_focal(
    pixels1: np.ndarray, pixels2: np.ndarray, K1: np.ndarray, K2: np.ndarray, factors: np.ndarray, iterations: int = 20
) -> np.ndarray:
    """The residuals (..., F, M) of `rotation_only` with each of the `factors` (F,) on both focal lengths; pixels
    (..., M, 2)."""
    columns = np.stack([factors, factors, np.ones_like(factors)], axis=-1)[:, None]
    pixels1, pixels2 = pixels1[..., None, :, :], pixels2[..., None, :, :]
    return rotation_only(pixels1, pixels2, K1 * columns, K2 * columns, iterations)[1]


def _rays(pixels: np.ndarray, K: np.ndarray) -> np.ndarray:
    return backproject(pixels, np.ones(pixels.shape[:-1]), K)


# Degeneracies of a pair: the same view, a pure rotation, and agreement by chance. Thresholds are in pixels of the
# photos.


# matches that no rotation explains: fewer do not determine the direction of motion
MIN_UNEXPLAINED, MIN_UNEXPLAINED_SHARE = 8, 0.1


def is_same_view(pixels1: np.ndarray, pixels2: np.ndarray, pixel_sizes_px: tuple[float, float]) -> bool:
    """Whether four of five matches move by less than one matched pixel: the same photo twice, or a camera on a tripod.

    `pixel_sizes_px`: pixels of each photo per matched pixel.
    """
    return len(pixels1) > 0 and bool(np.percentile(np.linalg.norm(pixels1 - pixels2, axis=1), 80) < max(pixel_sizes_px))


def unexplained_by_rotation(
    pixels1: np.ndarray,
    pixels2: np.ndarray,
    K1: np.ndarray,
    K2: np.ndarray,
    threshold_px: float,
    focal_unknown: bool = False,
) -> int:
    """How many matches have a residual of over three thresholds with the best pure rotation.

    `focal_unknown`: the focal lengths are guesses, and the best common factor on them is estimated, too.
    """
    estimate = rotation_only_any_focal if focal_unknown else rotation_only
    return int(np.count_nonzero(estimate(pixels1, pixels2, K1, K2)[1] > 3 * threshold_px))


def is_rotation(unexplained: int, matches: int) -> bool:
    """Whether a rotation leaves so few inliers unexplained that they do not determine the direction of motion."""
    return unexplained < max(MIN_UNEXPLAINED, MIN_UNEXPLAINED_SHARE * matches)


def log10_nfa_epipolar(
    inliers: int, matches: int, thresholds_px: tuple[float, float], sizes: Sequence[tuple[int, int]]
) -> float:
    """log10 of the number of false alarms (NFA) of an epipolar geometry: of the five-point models to expect with so
    many inliers among random matches. Below 0 chance does not explain the pair.

    The a-contrario test of L. Moisan and B. Stival, "A probabilistic criterion to detect rigid point matches between
    two images", IJCV 2004: a random point lies within a threshold of an epipolar line with a probability of at most
    2 * threshold * diagonal / area. Of the two photos, `sizes` (width, height) each, the larger probability is used.
    """
    probability = max(2 * t * float(np.hypot(w, h)) / (w * h) for t, (w, h) in zip(thresholds_px, sizes))
    return _log10_nfa(inliers, matches, probability, sample=5, solutions=10)


def log10_nfa_pnp(inliers: int, matches: int, threshold_px: float, size: tuple[float, float]) -> float:
    """As `log10_nfa_epipolar`, of a three-point pose of a camera (`size`: width, height): a random pixel lies within
    the threshold of another one with a probability of pi * threshold^2 / area."""
    probability = pi * threshold_px**2 / (size[0] * size[1])
    return _log10_nfa(inliers, matches, probability, sample=3, solutions=4)


def _log10_nfa(inliers: int, matches: int, probability: float, sample: int, solutions: int) -> float:
    if inliers <= sample or matches <= sample:
        return float("inf")
    models = solutions * (matches - sample)
    log_number = log(models) + _log_choose(matches, inliers) + _log_choose(inliers, sample)
    return (log_number + (inliers - sample) * log(min(1.0, probability))) / log(10)


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
