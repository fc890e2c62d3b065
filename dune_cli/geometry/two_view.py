"""Two calibrated views: triangulation, bundle adjustment, and the rotation that explains a motion best.

World is camera 1. `K1`, `K2` (3, 3); pixels (M, 2); points (M, 3) in camera 1's frame. float64 throughout.
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
    """A refined pair: `cam2_from_cam1` (4, 4) with unit baseline, `points_cam1` (M, 3) and `valid` (M,) for every
    correspondence handed in, `errors_px` (M,) the larger of its two reprojection errors (inf where not valid)."""

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

    Rays that run in parallel meet at infinity: such a point has inf or very large coordinates.
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
    """(M,) angle in radians at which each point sees the two camera centres."""
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
    """Two-view bundle adjustment (pycolmap, Cauchy loss) of pose and points, intrinsics fixed, then the same again on
    what then lies within `threshold_px` in both views and in front of both cameras.

    Two views do not determine the focal length together with pose and points well, so it is never refined here.
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
        fresh = triangulate(*arrays, pose)
        points = np.where(keep[:, None], points, fresh)
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
    """Pose with unit baseline and points (M, 3) after one solve; one thread, so that two runs agree to the bit."""
    pycolmap = optional.import_pycolmap("bundle adjustment")

    scene = pycolmap.Reconstruction()
    poses = (np.eye(4), cam2_from_cam1)
    for index, (K, pixels, pose) in enumerate(zip((K1, K2), (pixels1, pixels2), poses), start=1):
        # COLMAP's PINHOLE has no skew; what K has is taken out of the pixels, so that the rays stay the same
        fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
        straight = np.stack([pixels[:, 0] - K[0, 1] * (pixels[:, 1] - cy) / fy, pixels[:, 1]], axis=1)
        camera = pycolmap.Camera(model="PINHOLE", width=1, height=1, params=[fx, fy, cx, cy], camera_id=index)
        scene.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(name=str(index), keypoints=straight, camera_id=index, image_id=index)
        scene.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose[:3]))
    names = []
    for number, point in enumerate(points):
        track = pycolmap.Track()
        track.add_element(1, number)
        track.add_element(2, number)
        names.append(scene.add_point3D(point, track))
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
    moved = transform_points(inverse(world_from_1), np.array([scene.point3D(name).xyz for name in names]))
    length = np.linalg.norm(pose[:3, 3])
    pose[:3, 3] /= length
    return pose, moved / length


def rotation_only(
    pixels1: np.ndarray, pixels2: np.ndarray, K1: np.ndarray, K2: np.ndarray, iterations: int = 20
) -> tuple[np.ndarray, np.ndarray]:
    """The rotation that alone explains the motion best, and what it leaves.

    Returns `cam2_from_cam1` (3, 3) and the residuals (M,) in pixels of view 2. Robust by reweighting (Geman-McClure),
    each step solved in closed form (Kabsch).
    """
    rays1, rays2 = (r / np.linalg.norm(r, axis=1, keepdims=True) for r in (_rays(pixels1, K1), _rays(pixels2, K2)))
    weights = np.ones(len(rays1))
    for _ in range(iterations):
        rotation = nearest_rotation((rays2 * weights[:, None]).T @ rays1)
        turned = rays1 @ rotation.T
        residuals = np.linalg.norm(project(turned, K2) - pixels2, axis=1)
        residuals = np.where((turned[:, 2] > 0) & np.isfinite(residuals), residuals, np.inf)
        scale = max(float(np.median(residuals)), 0.25)
        with np.errstate(over="ignore"):
            weights = 1 / (1 + (residuals / (2 * scale)) ** 2) ** 2
    return rotation, residuals


def rotation_only_any_focal(
    pixels1: np.ndarray, pixels2: np.ndarray, K1: np.ndarray, K2: np.ndarray, factors: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """As `rotation_only` where the focal length is a guess: the factor on both focals that leaves the smallest median
    residual, and its residuals (M,). A wrong focal makes a pure rotation look like a motion."""
    factors = np.concatenate([[1.0], FOCAL_FACTORS]) if factors is None else factors
    residuals = rotation_only_by_focal(pixels1, pixels2, K1, K2, factors)
    best = int(np.argmin(np.median(residuals, axis=1)))
    return float(factors[best]), residuals[best]


def rotation_only_by_focal(
    pixels1: np.ndarray, pixels2: np.ndarray, K1: np.ndarray, K2: np.ndarray, factors: np.ndarray
) -> np.ndarray:
    """The residuals (F, M) that `rotation_only` leaves with each of the `factors` (F,) on both focal lengths."""
    residuals = []
    for factor in factors:
        zoom = np.diag([factor, factor, 1.0])
        K1_f, K2_f = (np.concatenate([(K @ zoom)[:, :2], K[:, 2:]], axis=1) for K in (K1, K2))
        residuals.append(rotation_only(pixels1, pixels2, K1_f, K2_f)[1])
    return np.stack(residuals)


def _rays(pixels: np.ndarray, K: np.ndarray) -> np.ndarray:
    return backproject(pixels, np.ones(len(pixels)), K)


# What tells a pair of views that gives a pose from chance, from one view twice, and from a turn on the spot.
#
# Pixels (M, 2) of the matches, pixel centres at integers; thresholds in pixels of the photos.


MIN_MOVING, MIN_MOVING_SHARE = 8, 0.1  # matches that no rotation explains; fewer leave the direction to chance


def is_same_view(pixels1: np.ndarray, pixels2: np.ndarray, pixel_sizes_px: tuple[float, float]) -> bool:
    """Whether four of five matches stay within one matched pixel: the same photo twice, or a camera on a tripod."""
    return len(pixels1) > 0 and bool(np.percentile(np.linalg.norm(pixels1 - pixels2, axis=1), 80) < max(pixel_sizes_px))


def unexplained_by_rotation(
    pixels1: np.ndarray,
    pixels2: np.ndarray,
    K1: np.ndarray,
    K2: np.ndarray,
    threshold_px: float,
    focal_unknown: bool = False,
) -> int:
    """How many matches lie over three thresholds from where the best rotation alone puts them in view 2.

    `focal_unknown`: the K are guesses, so the best common factor on their focal lengths is looked for, too.
    """
    best = rotation_only_any_focal if focal_unknown else rotation_only
    return int(np.count_nonzero(best(pixels1, pixels2, K1, K2)[1] > 3 * threshold_px))


def is_rotation(moving: int, matches: int) -> bool:
    """Whether so few of the agreeing matches move otherwise that the direction of motion would be chance."""
    return moving < max(MIN_MOVING, MIN_MOVING_SHARE * matches)


def log10_nfa_epipolar(
    inliers: int, matches: int, thresholds_px: tuple[float, float], sizes: Sequence[tuple[int, int]]
) -> float:
    """log10 of the number of five-point models that would find so many inliers among random matches by chance.

    The a-contrario test of L. Moisan and B. Stival, "A probabilistic criterion to detect rigid point matches between
    two images", IJCV 2004: a random point lies within a threshold of an epipolar line with a probability of at most
    2 * threshold * diagonal / area. Of the two photos, `sizes` (width, height) each, the one matched more coarsely
    decides. Below 0 chance does not explain the pair; the lower the surer.
    """
    chance = max(2 * t * float(np.hypot(w, h)) / (w * h) for t, (w, h) in zip(thresholds_px, sizes))
    return _log10_false_alarms(inliers, matches, chance, sample=5, solutions=10)


def log10_nfa_pnp(inliers: int, matches: int, threshold_px: float, size: tuple[float, float]) -> float:
    """The same for three-point poses of a camera (`size`: width, height): a random pixel lies within the threshold of
    another one with a probability of pi * threshold^2 / area."""
    chance = pi * threshold_px**2 / (size[0] * size[1])
    return _log10_false_alarms(inliers, matches, chance, sample=3, solutions=4)


def _log10_false_alarms(inliers: int, matches: int, chance: float, sample: int, solutions: int) -> float:
    if inliers <= sample or matches <= sample:
        return float("inf")
    models = solutions * (matches - sample)
    log_number = log(models) + _log_choose(matches, inliers) + _log_choose(inliers, sample)
    return (log_number + (inliers - sample) * log(min(1.0, chance))) / log(10)


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
