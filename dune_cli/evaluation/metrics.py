"""Metrics of camera poses and depth maps, which the benchmarks share.

Poses are `world_from_cam` (N, 4, 4). Those of reconstructions are known up to a similarity, which is fitted first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dune_cli.geometry.epipolar import pose_error
from dune_cli.geometry.poses import inverse, rotation_angle
from dune_cli.geometry.sim3 import move_poses, robust_similarity, scale_of, similarity_from_poses

FAILED_DEG = 180.0  # the error of a pose that is missing
FIT_TOLERANCE = 0.1  # of the extent: beyond it a camera's weight in the fit falls
FIT_ROUNDS = 100
MIN_BASELINE = 1e-3  # of the extent: the direction between nearer cameras is undefined
CLOSE_DEPTH = 0.05  # relative error
MAX_DEPTH_RATIO = 1.25


def median(values: Iterable[float]) -> float:
    """The median; NaN of nothing."""
    values = list(values)
    return float(np.median(values)) if values else float("nan")


def mean(values: Iterable[float]) -> float:
    """The mean; NaN of nothing."""
    values = list(values)
    return float(np.mean(values)) if values else float("nan")


# --- poses ---


@dataclass(frozen=True)
class CameraErrors:
    """Errors after the fit `true_from_estimated` (4, 4): rotation_deg (N,), and centre (N,) in the truth's unit."""

    true_from_estimated: np.ndarray
    rotation_deg: np.ndarray
    centre: np.ndarray

    @property
    def scale(self) -> float:
        """The factor from estimated to true lengths."""
        return float(scale_of(self.true_from_estimated))


def extent(world_from_cam: np.ndarray) -> float:
    """The largest distance between two cameras (N, 4, 4)."""
    centres = world_from_cam[:, :3, 3]
    return float(np.linalg.norm(centres[:, None] - centres, axis=-1).max()) if len(centres) else 0.0


def fit_cameras(true: np.ndarray, estimated: np.ndarray) -> np.ndarray:
    """(4, 4) `true_from_estimated` between poses (N, 4, 4): a robust Umeyama fit.

    Each camera counts as its centre and the ends of its axes, so that cameras in a row fix all rotations, too. The axes
    are as long as the extent of the true cameras, and in the estimated world as long as the scale of the fit makes
    that. This is repeated until the scale stays, so that the scale comes from the centres alone. ValueError unless two
    cameras are apart.
    """
    length = extent(true)
    if not (length > 0 and extent(estimated) > 0):
        raise ValueError("two cameras that stand apart are needed")
    fit = similarity_from_poses(true, estimated)
    weights, sizes = np.ones(4 * len(true)), np.full(4 * len(true), length)
    true_points = _axis_points(true, length)
    for _ in range(FIT_ROUNDS):
        scale = float(scale_of(fit))
        points = _axis_points(estimated, length / scale)
        fit = robust_similarity(true_points, points, weights, sizes, FIT_TOLERANCE, start=fit).a_from_b
        if abs(float(scale_of(fit)) / scale - 1) < 1e-9:
            break
    return fit


def camera_errors(true: np.ndarray, estimated: np.ndarray) -> CameraErrors:
    """Errors of poses (N, 4, 4), N >= 2. ValueError unless two cameras are apart."""
    fit = fit_cameras(true, estimated)
    moved = move_poses(fit, estimated)
    rotation = rotation_angle(np.swapaxes(moved[:, :3, :3], 1, 2) @ true[:, :3, :3])
    return CameraErrors(fit, np.degrees(rotation), np.linalg.norm(moved[:, :3, 3] - true[:, :3, 3], axis=1))


def pair_errors_deg(true: np.ndarray, estimated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Errors of rotation and translation direction in degrees, of all pairs i < j of poses (N, 4, 4).

    No similarity changes them. Pairs with an estimated pose of NaN have 180. Pairs whose true cameras are in one place
    are left out.
    """
    rotations, directions, min_baseline = [], [], MIN_BASELINE * extent(true)
    for i in range(len(true)):
        for j in range(i + 1, len(true)):
            j_from_i = inverse(true[j]) @ true[i]
            if not np.linalg.norm(j_from_i[:3, 3]) > min_baseline:
                continue
            if not (np.isfinite(estimated[i]).all() and np.isfinite(estimated[j]).all()):
                rotations.append(FAILED_DEG)
                directions.append(FAILED_DEG)
                continue
            rotation, direction = np.degrees(pose_error(inverse(estimated[j]) @ estimated[i], j_from_i)).tolist()
            rotations.append(rotation)
            directions.append(direction)
    return np.array(rotations), np.array(directions)


def scale_errors(true: np.ndarray, estimated: np.ndarray, scale: float) -> tuple[float, float]:
    """Relative errors of lengths, when the distance of the first two cameras is given, and when that of two neighbours
    is: the median over all neighbours. scale: from estimated to true lengths. NaN where the two are in one place."""
    true_steps, steps = (np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1) for poses in (true, estimated))
    moved = true_steps > MIN_BASELINE * extent(true)
    errors = np.full(len(moved), np.nan)
    with np.errstate(divide="ignore"):
        errors[moved] = np.abs(true_steps[moved] / steps[moved] / scale - 1)
    return float(errors[0]), float(np.nanmedian(errors)) if moved.any() else float("nan")


def _axis_points(world_from_cam: np.ndarray, length: float) -> np.ndarray:
    """(4 N, 3) centres and ends of the axes."""
    centres, axes = world_from_cam[:, :3, 3], np.swapaxes(world_from_cam[:, :3, :3], 1, 2)
    return np.concatenate([centres[:, None], centres[:, None] + length * axes], axis=1).reshape(-1, 3)


# --- depth ---


@dataclass(frozen=True)
class DepthErrors:
    """Errors over the `pixels` with measured depth.

    completeness: share with an estimate. Of those: abs_rel, the mean |estimate - truth| / truth; delta, the share with
    a ratio below 1.25 either way; close, the share within 5 %. close_of_all: close ones as a share of all measured
    pixels. NaN without estimates.
    """

    pixels: int
    completeness: float
    abs_rel: float
    delta: float
    close: float
    close_of_all: float


def depth_errors(estimated: np.ndarray | None, true: np.ndarray) -> DepthErrors:
    """Errors of depth maps (H, W), NaN or <= 0 where there is no estimate or measurement; `estimated` None: nowhere.

    D. Eigen et al., NIPS 2014, section 4.2. ValueError where nothing was measured, and for shapes that differ.
    """
    measured = np.isfinite(true) & (true > 0)
    if not measured.any():
        raise ValueError("no pixel has a true depth")
    estimated = np.full(true.shape, np.nan) if estimated is None else np.asarray(estimated, np.float64)
    if estimated.shape != true.shape:
        raise ValueError(f"a depth map of {estimated.shape} does not go with a truth of {true.shape}")
    valid = measured & np.isfinite(estimated) & (estimated > 0)
    count, pixels = int(valid.sum()), int(measured.sum())
    if count == 0:
        nan = float("nan")
        return DepthErrors(pixels, 0.0, nan, nan, nan, 0.0)
    ratio = estimated[valid] / true[valid]
    error = np.abs(ratio - 1)
    close = int((error <= CLOSE_DEPTH).sum())
    delta = float((np.maximum(ratio, 1 / ratio) < MAX_DEPTH_RATIO).mean())
    return DepthErrors(pixels, count / pixels, float(error.mean()), delta, close / count, close / pixels)


def mean_depth_errors(errors: Sequence[DepthErrors]) -> DepthErrors:
    """The mean over photos of equal weight; those without estimates count in completeness and close_of_all only."""

    def mean_of(name: str) -> float:
        return mean(value for value in (getattr(e, name) for e in errors) if np.isfinite(value))

    names = ("completeness", "abs_rel", "delta", "close", "close_of_all")
    return DepthErrors(sum(e.pixels for e in errors), *map(mean_of, names))
