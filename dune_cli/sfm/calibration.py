"""The lenses of a mapped reconstruction, weighed against what was known of them before, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dune_cli.geometry.bundle_adjustment import Bundle, Priors, adjust_bundle
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.scene import View
from dune_cli.sfm.verification import SharedCamera

if TYPE_CHECKING:
    from dune_cli.sfm.mapper import SfmModel


# of the logarithm of a focal length: from 55 degrees, one deviation reaches 38 and 76 degrees across the long side
GUESS_SD, EXIF_SD = 0.4, 0.05
RADIAL_SD = 0.1  # of COLMAP's k of SIMPLE_RADIAL; phones and reflex cameras are within 0.1, action cameras at -0.25
LOST = 2.5  # deviations, beyond which COLMAP is taken to have lost itself
SURPRISE = 3.0  # deviations of a prior beyond which it was none: a cropped photo keeps the EXIF of the whole one
MAX_OBSERVATIONS = 300_000  # above, the points with the longest tracks speak for all
MIN_POINTS = 6
MAX_ERROR_PX = 4.0  # of a point, in matched pixels, as in COLMAP


def implausible_cameras(
    cameras: Mapping[int, tuple[np.ndarray, float]], lenses: Sequence[SharedCamera]
) -> dict[int, tuple[np.ndarray, float]]:
    """Where a lens of `cameras` is no lens that one would expect, all as they were known before; else empty."""
    before = {n: (_start(lenses[n]), 0.0) for n in cameras}
    for n, (K, radial) in cameras.items():
        moved = abs(np.log(K[0, 0] / before[n][0][0, 0]))
        if not lenses[n].fixed and (moved > LOST * GUESS_SD or abs(radial) > LOST * RADIAL_SD):
            return before
    return {}


def _start(lens: SharedCamera) -> np.ndarray:
    """K as it was known before, with one focal length where it is looked for."""
    K = lens.K.copy()
    if not lens.fixed:
        K[[0, 1], [0, 1]] = np.sqrt(K[0, 0] * K[1, 1])
    return K


def calibrate(
    mapped: SfmModel,
    found: Correspondences,
    lenses: Sequence[SharedCamera],
    lens_of: Sequence[int],
    scale: float,
    fixed: Mapping[int, np.ndarray],
    centres: Mapping[int, np.ndarray],
    centre_sd: float,
) -> SfmModel | None:
    """`mapped` with the lenses (and poses and points) that the observations and the priors give together.

    `fixed`: poses that stay; `centres`: about where cameras are, within `centre_sd`. None where the points do not
    determine the cameras.
    """
    views = sorted(mapped.world_from_cam)
    used = sorted({lens_of[index] for index in views})
    bundle, start = _bundle(mapped, found, lenses, lens_of, views, used)
    sds = np.array([0.0 if lenses[n].fixed else EXIF_SD if lenses[n].prior else GUESS_SD for n in used])
    radial_sds = np.where(sds > 0, RADIAL_SD, 0.0)
    priors = Priors(
        sds,
        radial_sds,
        np.array([index in fixed for index in views]),
        np.stack([centres.get(index, np.full(3, np.nan)) for index in views]) if centres else None,
        centre_sd,
    )
    good = np.isfinite(bundle.residuals_px()).all(-1)
    wanted = _longest_tracks(bundle) if len(bundle.view) > MAX_OBSERVATIONS else np.ones(len(bundle.points_world), bool)
    part, _, _ = _restricted(bundle, good, wanted)
    if len(part.points_world) < MIN_POINTS:
        return None
    adjusted = adjust_bundle(part, priors, start)
    if adjusted is None:
        return None
    moved = np.abs(np.log(adjusted.bundle.K[:, 0, 0] / start[:, 0, 0]))
    surprised = np.array([lenses[n].prior for n in used]) & (moved > SURPRISE * sds)
    if surprised.any():
        priors = replace(priors, log_focal_sd=np.where(surprised, GUESS_SD, sds))
        adjusted = adjust_bundle(part, priors, start) or adjusted
    K, radial = adjusted.bundle.K, adjusted.bundle.radial
    cameras = mapped.cameras | {n: (K[row], float(radial[row])) for row, n in enumerate(used)}
    sds_of = {
        n: (float(adjusted.log_focal_sd[row]), float(adjusted.radial_sd[row]))
        for row, n in enumerate(used)
        if not lenses[n].fixed
    }
    modes = {index: adjusted.modes[:, row] for row, index in enumerate(views)}
    mapped = replace(mapped, cameras=cameras, lens_sd=sds_of, modes=modes)
    if not wanted.all():  # the points that had no say would not go with other poses
        return mapped
    return _with_points(mapped, bundle, good, adjusted.bundle, views, MAX_ERROR_PX * scale)


def _bundle(
    mapped: SfmModel,
    found: Correspondences,
    lenses: Sequence[SharedCamera],
    lens_of: Sequence[int],
    views: Sequence[int],
    used: Sequence[int],
) -> tuple[Bundle, np.ndarray]:
    """Lenses, views and points in the order of `used`, `views` and `mapped`; and the lenses (L, 3, 3) as they were
    known before."""
    row = {number: place for place, number in enumerate(used)}
    view, point, pixels = [], [], []
    for place, index in enumerate(views):
        points, keypoints = mapped.observations[index]
        view.append(np.full(len(points), place))
        point.append(points)
        pixels.append(found.keypoints[index][keypoints])
    bundle = Bundle(
        K=np.stack([mapped.cameras[number][0] for number in used]),
        radial=np.array([mapped.cameras[number][1] for number in used]),
        long_side_px=np.array([float(max(lenses[number].width, lenses[number].height)) for number in used]),
        lens_of=np.array([row[lens_of[index]] for index in views]),
        world_from_cam=np.stack([mapped.world_from_cam[index] for index in views]),
        points_world=mapped.points_world,
        view=np.concatenate(view),
        point=np.concatenate(point),
        pixels=np.concatenate(pixels),
    )
    return bundle, np.stack([_start(lenses[number]) for number in used])


def _restricted(bundle: Bundle, good: np.ndarray, wanted: np.ndarray) -> tuple[Bundle, np.ndarray, np.ndarray]:
    """The `good` (N,) observations of the `wanted` (P,) points that two of them see; which observations and points
    these are."""
    amount = np.bincount(bundle.point[good], minlength=len(bundle.points_world))
    keep = wanted & (amount >= 2)
    place = np.cumsum(keep) - 1
    use = good & keep[bundle.point]
    part = replace(
        bundle,
        points_world=bundle.points_world[keep],
        view=bundle.view[use],
        point=place[bundle.point[use]],
        pixels=bundle.pixels[use],
    )
    return part, use, keep


def _longest_tracks(bundle: Bundle) -> np.ndarray:
    """(P,) bool: those with the longest tracks, up to MAX_OBSERVATIONS."""
    amount = np.bincount(bundle.point, minlength=len(bundle.points_world))
    order = np.argsort(-amount, kind="stable")
    wanted = np.zeros(len(amount), bool)
    wanted[order[np.cumsum(amount[order]) <= MAX_OBSERVATIONS]] = True
    return wanted


def _with_points(
    mapped: SfmModel, before: Bundle, good: np.ndarray, after: Bundle, views: Sequence[int], limit_px: float
) -> SfmModel:
    """The poses and points of `after`, which has the `good` observations of `before`; those that are off by more than
    the limit are left out."""
    _, use, keep = _restricted(before, good, np.ones(len(before.points_world), bool))
    off = np.linalg.norm(after.residuals_px(), axis=1)
    near = np.flatnonzero(use)[off <= limit_px]
    still = np.zeros(len(good), bool)
    still[near] = True
    points = before.points_world.copy()
    points[keep] = after.points_world
    amount = np.bincount(before.point[still], minlength=len(points))
    lasting = amount >= 2
    size = np.zeros(len(good))
    size[use] = off
    total = np.bincount(before.point[still], size[still], minlength=len(points))
    place = np.cumsum(lasting) - 1
    observations, first = {}, 0
    for index in views:
        seen, keypoints = mapped.observations[index]
        own = still[first : first + len(seen)] & lasting[seen]
        first += len(seen)
        observations[index] = (place[seen[own]], keypoints[own])
    return replace(
        mapped,
        world_from_cam={index: after.world_from_cam[row] for row, index in enumerate(views)},
        points_world=points[lasting],
        errors_px=total[lasting] / amount[lasting],
        observations=observations,
    )


# What became of the focal lengths that were looked for, in words.


UNSURE = 0.03  # of the focal length, one standard deviation: beyond it a note warns
EACH_UP_TO = 3  # cameras


def calibration_notes(views: Sequence[View]) -> tuple[str, ...]:
    """Old and new focal length with its standard deviation, camera by camera while they are few, and a warning where
    the photos hardly determine it."""
    cameras: dict[tuple[float, ...], list[View]] = {}
    for view in views:
        if view.calibration is not None:
            facts = view.calibration.focal_before_px, view.K[0, 0], view.radial, view.calibration.focal_sd
            cameras.setdefault(tuple(map(float, facts)), []).append(view)
    if not cameras:
        found = any(view.registered and view.focal_source == "estimated" for view in views)
        return ("focal lengths were estimated with the cameras; how sure they are is not known",) if found else ()
    notes = []
    if len(cameras) <= EACH_UP_TO:
        for (before_px, focal_px, _, sd), group in cameras.items():
            whose = group[0].image if len(group) == 1 else f"{len(group)} photos"
            notes.append(f"focal length of {whose}: {before_px:.0f} -> {focal_px:.0f} px, +- {sd:.1%}")
    else:
        sds = np.array([sd for *_, sd in cameras])
        changes = np.array([focal_px / before_px - 1 for before_px, focal_px, *_ in cameras])
        notes.append(
            f"focal lengths of {len(cameras)} cameras were estimated: changed by {np.median(np.abs(changes)):.1%} "
            f"(median), +- {np.median(sds):.1%} (median), +- {sds.max():.1%} (the least sure one)"
        )
    worst = max(sd for *_, sd in cameras)
    if worst > UNSURE:
        notes.append(
            f"the photos hardly determine the focal length (+- {worst:.0%}), and depths and angles are off with it; "
            "give --intrinsics or --fov-deg, or add photos that look at the same place from turned directions"
        )
    return tuple(notes)
