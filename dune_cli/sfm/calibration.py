"""Calibration of a mapped model: focal lengths and radial terms under priors, and their uncertainty."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dune_cli.geometry.bundle_adjustment import Bundle, Priors, adjust_bundle
from dune_cli.sfm.cameras import PhotoCameras, SharedCamera
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.scene import SfmModel, View

# of the logarithm of a focal length: from 55 degrees, one deviation reaches 38 and 76 degrees across the long side
GUESS_SD, EXIF_SD = 0.4, 0.05
RADIAL_SD = 0.1  # of COLMAP's k of SIMPLE_RADIAL; phones and reflex cameras are within 0.1, action cameras at -0.25
IMPLAUSIBLE = 2.5  # standard deviations, beyond which COLMAP is taken to have diverged
OUTLYING_PRIOR = 3.0  # standard deviations beyond which a prior is dropped: a cropped photo keeps the original's EXIF
MAX_OBSERVATIONS = 300_000  # above, only the points with the longest tracks are used
MIN_POINTS = 6
MAX_ERROR_PX = 4.0  # of a point, in matched pixels, as in COLMAP


def implausible_cameras(
    cameras: Mapping[int, tuple[np.ndarray, float]], shared: Sequence[SharedCamera]
) -> dict[int, tuple[np.ndarray, float]]:
    """Where one of the calibrated `cameras` (K, radial term) is implausible, all of them as they were before
    calibration; else empty."""
    before = {n: (_initial_K(shared[n]), 0.0) for n in cameras}
    for n, (K, radial) in cameras.items():
        change = abs(np.log(K[0, 0] / before[n][0][0, 0]))
        if not shared[n].fixed and (change > IMPLAUSIBLE * GUESS_SD or abs(radial) > IMPLAUSIBLE * RADIAL_SD):
            return before
    return {}


def _initial_K(camera: SharedCamera) -> np.ndarray:
    """K before calibration, with one focal length where it is calibrated."""
    K = camera.K.copy()
    if not camera.fixed:
        K[[0, 1], [0, 1]] = np.sqrt(K[0, 0] * K[1, 1])
    return K


def calibrate(
    model: SfmModel,
    correspondences: Correspondences,
    cameras: PhotoCameras,
    fixed_poses: Collection[int],
    centres: Mapping[int, np.ndarray],
    centre_sd: float,
) -> SfmModel | None:
    """The model after bundle adjustment with priors on its cameras, with the cameras' uncertainty.

    `fixed_poses`: photos whose pose is kept. `centres`: photo -> prior of its centre (3,), with standard deviation
    `centre_sd`. None where the points do not determine the cameras.
    """
    views = sorted(model.world_from_cam)
    used = sorted({cameras.ids[index] for index in views})
    bundle = _bundle(model, correspondences, cameras, views, used)
    start_K = np.stack([_initial_K(cameras.shared[n]) for n in used])
    has_prior = np.array([cameras.shared[n].prior for n in used])
    is_fixed = np.array([cameras.shared[n].fixed for n in used])
    focal_sd = np.where(is_fixed, 0.0, np.where(has_prior, EXIF_SD, GUESS_SD))
    priors = Priors(
        focal_sd,
        np.where(focal_sd > 0, RADIAL_SD, 0.0),
        np.array([index in fixed_poses for index in views]),
        np.stack([centres.get(index, np.full(3, np.nan)) for index in views]) if centres else None,
        centre_sd,
    )
    in_front = np.isfinite(bundle.residuals_px()).all(-1)
    every = np.ones(len(bundle.points_world), bool)
    selected = _longest_tracks(bundle) if len(bundle.view) > MAX_OBSERVATIONS else every
    part, _, _ = _restrict(bundle, in_front, selected)
    if len(part.points_world) < MIN_POINTS:
        return None
    adjusted = adjust_bundle(part, priors, start_K)
    if adjusted is None:
        return None
    change = np.abs(np.log(adjusted.bundle.K[:, 0, 0] / start_K[:, 0, 0]))
    outlying = has_prior & (change > OUTLYING_PRIOR * focal_sd)
    if outlying.any():
        priors = replace(priors, log_focal_sd=np.where(outlying, GUESS_SD, focal_sd))
        adjusted = adjust_bundle(part, priors, start_K) or adjusted
    K, radial = adjusted.bundle.K, adjusted.bundle.radial
    calibrated = replace(
        model,
        cameras=model.cameras | {n: (K[row], float(radial[row])) for row, n in enumerate(used)},
        camera_sd={
            n: (float(adjusted.log_focal_sd[row]), float(adjusted.radial_sd[row]))
            for row, n in enumerate(used)
            if not is_fixed[row]
        },
        modes={index: adjusted.modes[:, row] for row, index in enumerate(views)},
    )
    if not selected.all():  # the points that were left out would not fit other poses
        return calibrated
    limit_px = MAX_ERROR_PX * correspondences.pixel_size
    return _with_adjusted_points(calibrated, bundle, in_front, adjusted.bundle, views, limit_px)


def _bundle(
    model: SfmModel,
    correspondences: Correspondences,
    cameras: PhotoCameras,
    views: Sequence[int],
    used: Sequence[int],
) -> Bundle:
    """The model's cameras, views and points in the order of `used`, `views` and the model."""
    row_of = {n: row for row, n in enumerate(used)}
    view, point, pixels = [], [], []
    for row, index in enumerate(views):
        points, keypoints = model.observations[index]
        view.append(np.full(len(points), row))
        point.append(points)
        pixels.append(correspondences.keypoints[index][keypoints])
    shared = [cameras.shared[n] for n in used]
    return Bundle(
        K=np.stack([model.cameras[n][0] for n in used]),
        radial=np.array([model.cameras[n][1] for n in used]),
        long_side_px=np.array([float(max(camera.width, camera.height)) for camera in shared]),
        camera_ids=np.array([row_of[cameras.ids[index]] for index in views]),
        world_from_cam=np.stack([model.world_from_cam[index] for index in views]),
        points_world=model.points_world,
        view=np.concatenate(view),
        point=np.concatenate(point),
        pixels=np.concatenate(pixels),
    )


def _restrict(bundle: Bundle, valid: np.ndarray, selected: np.ndarray) -> tuple[Bundle, np.ndarray, np.ndarray]:
    """The `valid` (N,) observations of those `selected` (P,) points that have two of them or more; masks of the
    observations and of the points that are kept."""
    track_length = np.bincount(bundle.point[valid], minlength=len(bundle.points_world))
    keep_points = selected & (track_length >= 2)
    new_index = np.cumsum(keep_points) - 1
    keep = valid & keep_points[bundle.point]
    part = replace(
        bundle,
        points_world=bundle.points_world[keep_points],
        view=bundle.view[keep],
        point=new_index[bundle.point[keep]],
        pixels=bundle.pixels[keep],
    )
    return part, keep, keep_points


def _longest_tracks(bundle: Bundle) -> np.ndarray:
    """(P,) bool: the points with the longest tracks, up to MAX_OBSERVATIONS."""
    track_length = np.bincount(bundle.point, minlength=len(bundle.points_world))
    order = np.argsort(-track_length, kind="stable")
    selected = np.zeros(len(track_length), bool)
    selected[order[np.cumsum(track_length[order]) <= MAX_OBSERVATIONS]] = True
    return selected


def _with_adjusted_points(
    model: SfmModel, before: Bundle, valid: np.ndarray, after: Bundle, views: Sequence[int], limit_px: float
) -> SfmModel:
    """The model with the poses and points of `after`, which has the `valid` observations of `before`, without the
    observations whose error is above the limit."""
    _, used, used_points = _restrict(before, valid, np.ones(len(before.points_world), bool))
    errors_px = np.linalg.norm(after.residuals_px(), axis=1)
    keep = np.zeros(len(valid), bool)
    keep[np.flatnonzero(used)[errors_px <= limit_px]] = True
    points = before.points_world.copy()
    points[used_points] = after.points_world
    track_length = np.bincount(before.point[keep], minlength=len(points))
    keep_points = track_length >= 2
    all_errors_px = np.zeros(len(valid))
    all_errors_px[used] = errors_px
    total_px = np.bincount(before.point[keep], all_errors_px[keep], minlength=len(points))
    new_index = np.cumsum(keep_points) - 1
    observations, start = {}, 0
    for index in views:
        point, keypoints = model.observations[index]
        own = keep[start : start + len(point)] & keep_points[point]
        start += len(point)
        observations[index] = (new_index[point[own]], keypoints[own])
    return replace(
        model,
        world_from_cam={index: after.world_from_cam[row] for row, index in enumerate(views)},
        points_world=points[keep_points],
        errors_px=total_px[keep_points] / track_length[keep_points],
        observations=observations,
    )


# Notes on the calibrated focal lengths.


UNCERTAIN = 0.03  # of the focal length, one standard deviation: beyond it a note warns
EACH_UP_TO = 3  # cameras


def calibration_notes(views: Sequence[View]) -> tuple[str, ...]:
    """The focal length of each camera before and after calibration, with its standard deviation (of many cameras a
    summary), and a warning where the photos hardly determine it."""
    cameras: dict[tuple[float, ...], list[View]] = {}
    for view in views:
        if view.calibration is not None:
            key = view.calibration.focal_before_px, view.K[0, 0], view.radial, view.calibration.focal_sd
            cameras.setdefault(tuple(map(float, key)), []).append(view)
    if not cameras:
        estimated = any(view.registered and view.focal_source == "estimated" for view in views)
        if not estimated:
            return ()
        return ("focal lengths were estimated with the cameras; their uncertainty is unknown",)
    notes = []
    if len(cameras) <= EACH_UP_TO:
        for (before_px, focal_px, _, sd), group in cameras.items():
            name = group[0].image if len(group) == 1 else f"{len(group)} photos"
            notes.append(f"focal length of {name}: {before_px:.0f} -> {focal_px:.0f} px, +- {sd:.1%}")
    else:
        sds = np.array([sd for *_, sd in cameras])
        changes = np.array([focal_px / before_px - 1 for before_px, focal_px, *_ in cameras])
        notes.append(
            f"focal lengths of {len(cameras)} cameras were estimated: changed by {np.median(np.abs(changes)):.1%} "
            f"(median), +- {np.median(sds):.1%} (median), +- {sds.max():.1%} (largest)"
        )
    worst = max(sd for *_, sd in cameras)
    if worst > UNCERTAIN:
        notes.append(
            f"the photos hardly determine the focal length (+- {worst:.0%}), and depths and angles have errors with "
            "it; give --intrinsics or --fov-deg, or add photos of the same place in other viewing directions"
        )
    return tuple(notes)
