"""Calibration of a mapped model: focal lengths and lenses under priors, and their uncertainty."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dune_cli.geometry.bundle_adjustment import (
    CORRELATION,
    MAX_STEPS,
    MIN_GAIN,
    AdjustedBundle,
    Bundle,
    Priors,
    adjust_bundle,
    carry_points,
    expected_gain,
    restrict,
)
from dune_cli.geometry.camera_models import MODELS, Camera
from dune_cli.geometry.normal_equations import TERMS
from dune_cli.sfm.cameras import PhotoCameras, SharedCamera
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.scene import SfmModel, View

# of the logarithm of a focal length: from 55 degrees, one deviation reaches 38 and 76 degrees across the long side
GUESS_SD, EXIF_SD = 0.4, 0.05
RADIAL_SD = 0.1  # of COLMAP's k of SIMPLE_RADIAL; phones and reflex cameras are within 0.1, action cameras at -0.25
IMPLAUSIBLE_RADIAL = 0.4
IMPLAUSIBLE = 3.0  # standard deviations, beyond which COLMAP is taken to have diverged
OUTLYING_PRIOR = 3.0  # standard deviations beyond which a prior is dropped: a cropped photo keeps the original's EXIF
MAX_OBSERVATIONS = 60_000  # above, the points with the longest tracks alone calibrate the cameras
LAST_STEPS = 2  # of all the points together
MIN_POINTS = 6
LEAST_OBSERVATIONS = 20  # of a view, where only some of the points are used: few leave its pose undetermined
MAX_ERROR_PX = 4.0  # of a point, in matched pixels, as in COLMAP


def implausible_cameras(cameras: Mapping[int, Camera], shared: Sequence[SharedCamera]) -> dict[int, Camera]:
    """Where one of the calibrated `cameras` is implausible, all of them as they were before calibration; else empty."""
    before = {n: initial_camera(shared[n]) for n in cameras}
    for n, camera in cameras.items():
        change = abs(np.log(camera.params[0] / before[n].params[0]))
        if not shared[n].fixed and (change > IMPLAUSIBLE * GUESS_SD or abs(camera.first_radial) > IMPLAUSIBLE_RADIAL):
            return before
    return {}


def initial_camera(shared: SharedCamera) -> Camera:
    """The camera before calibration: SIMPLE_RADIAL with one focal length where that is estimated."""
    if shared.fixed:
        return shared.camera
    K = shared.K
    params = (float(np.sqrt(K[0, 0] * K[1, 1])), K[0, 2], K[1, 2], 0.0)
    return Camera("SIMPLE_RADIAL", params, shared.width, shared.height)


def calibrate(
    model: SfmModel,
    correspondences: Correspondences,
    cameras: PhotoCameras,
    fixed_poses: Collection[int],
    centres: Mapping[int, np.ndarray],
    centre_sd: float,
) -> SfmModel | None:
    """The model after bundle adjustment with priors on its cameras, with the cameras' uncertainty.

    Lenses that are not known get the model of LENSES that the points support (`_choose_lens`). `fixed_poses`: photos
    whose pose is kept. `centres`: photo -> prior of its centre (3,), with standard deviation `centre_sd`. None where
    the points do not determine the cameras, and where all focal lengths are known and no lens shows distortion.
    """
    views = sorted(model.world_from_cam)
    used = sorted({cameras.ids[index] for index in views})
    shared = [cameras.shared[n] for n in used]
    bundle = bundle_of(model, correspondences, cameras, views, used)
    start_K, focal_sd, has_prior = focal_priors(shared)
    is_fixed = np.array([camera.fixed for camera in shared])
    priors = Priors(
        focal_sd,
        np.zeros((len(used), TERMS)),
        np.array([index in fixed_poses for index in views]),
        np.stack([centres.get(index, np.full(3, np.nan)) for index in views]) if centres else None,
        centre_sd,
    )
    in_front = np.isfinite(bundle.residuals_px()).all(-1)
    every = np.ones(len(bundle.points_world), bool)
    selected = longest_tracks(bundle, MAX_OBSERVATIONS)
    part, _, _ = restrict(bundle, in_front, selected)
    if len(part.points_world) < MIN_POINTS:
        return None
    problem = LensProblem(part, priors, start_K, shared)
    chosen = _choose_lens(problem, [model.cameras[n] for n in used])
    if chosen is None or (is_fixed.all() and chosen[0] == NO_LENS):
        return None
    lens, start = chosen
    adjusted = problem.adjusted(lens, problem.started(start))
    if adjusted is None:
        return None
    change = np.abs(np.log(adjusted.bundle.K[:, 0, 0] / start_K[:, 0, 0]))
    outlying = has_prior & (change > OUTLYING_PRIOR * focal_sd)
    if outlying.any():
        problem = replace(problem, priors=replace(priors, log_focal_sd=np.where(outlying, GUESS_SD, focal_sd)))
        adjusted = problem.adjusted(lens, adjusted.bundle) or adjusted
    if not selected.all():  # the other points follow the cameras, and have their part in the last steps
        whole, _, _ = restrict(bundle, in_front, every)
        problem = replace(problem, bundle=whole)
        adjusted = problem.adjusted(lens, carry_points(problem.started(adjusted.bundle), whole), LAST_STEPS)
        if adjusted is None:
            return None
    found = problem.cameras(lens, adjusted.bundle)
    calibrated = replace(
        model,
        cameras=model.cameras | dict(zip(used, found)),
        camera_sd=camera_sds(adjusted, shared, found, used),
        modes={index: adjusted.modes[:, row] for row, index in enumerate(views)},
    )
    limit_px = MAX_ERROR_PX * correspondences.pixel_size
    fitted = replace(bundle, fisheye=adjusted.bundle.fisheye)
    return with_adjusted_points(calibrated, fitted, in_front, adjusted.bundle, views, limit_px)


def camera_sds(
    adjusted: AdjustedBundle, shared: Sequence[SharedCamera], found: Sequence[Camera], used: Sequence[int]
) -> dict[int, tuple[float, tuple[float, ...]]]:
    """`SfmModel.camera_sd` of the cameras that were `found`, whose indices are `used`."""
    return {
        n: (float(adjusted.log_focal_sd[row]), tuple(map(float, adjusted.distortion_sd[row]))[: len(camera.distortion)])
        for row, (n, camera) in enumerate(zip(used, found))
        if not (shared[row].fixed and shared[row].lens_known)
    }


def focal_priors(shared: Sequence[SharedCamera]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of C cameras: K before calibration (C, 3, 3), the standard deviation of the logarithm of the focal length (C,), 0
    where it is fixed, and whether it has a prior (C,)."""
    has_prior = np.array([camera.prior for camera in shared])
    is_fixed = np.array([camera.fixed for camera in shared])
    focal_sd = np.where(is_fixed, 0.0, np.where(has_prior, EXIF_SD, GUESS_SD))
    return np.stack([initial_camera(camera).K for camera in shared]), focal_sd, has_prior


def bundle_of(
    model: SfmModel,
    correspondences: Correspondences,
    cameras: PhotoCameras,
    views: Sequence[int],
    used: Sequence[int],
) -> Bundle:
    """The model's cameras, views and points in the order of `used`, `views` and the model. Pixels of a lens that the
    adjustment does not have are undistorted."""
    row_of = {n: row for row, n in enumerate(used)}
    own = {n: _terms_of(model.cameras[n]) for n in used}
    view, point, pixels = [], [], []
    for row, index in enumerate(views):
        points, keypoints = model.observations[index]
        camera = cameras.ids[index]
        seen = correspondences.keypoints[index][keypoints]
        view.append(np.full(len(points), row))
        point.append(points)
        pixels.append(model.cameras[camera].undistort(seen) if own[camera] is None else seen)
    shared = [cameras.shared[n] for n in used]
    terms = [own[n] or ((0.0,) * TERMS, False) for n in used]
    return Bundle(
        K=np.stack([model.cameras[n].K for n in used]),
        distortion=np.array([values for values, _ in terms]),
        fisheye=np.array([fisheye for _, fisheye in terms]),
        long_side_px=np.array([float(max(camera.width, camera.height)) for camera in shared]),
        camera_ids=np.array([row_of[cameras.ids[index]] for index in views]),
        world_from_cam=np.stack([model.world_from_cam[index] for index in views]),
        points_world=model.points_world,
        view=np.concatenate(view),
        point=np.concatenate(point),
        pixels=np.concatenate(pixels),
    )


def _terms_of(camera: Camera) -> tuple[tuple[float, ...], bool] | None:
    """The distortion of a camera as a bundle has it, and whether it is a fisheye; None where it has other terms."""
    names = ("k1", "k2", "k3", "k4") if camera.kind.fisheye else ("k1", "k2", "p1", "p2")
    terms = dict(zip(camera.kind.parameters[camera.kind.focals + 2 :], camera.distortion))
    if camera.kind.shape != "polynomial" or any(value for name, value in terms.items() if name not in names):
        return None
    return tuple(terms.get(name, 0.0) for name in names), camera.kind.fisheye


# Which lens: the simplest model that explains the points.


NO_LENS = "PINHOLE"
LENSES = {  # model: the standard deviations of its terms
    NO_LENS: (0.0, 0.0, 0.0, 0.0),
    "SIMPLE_RADIAL": (RADIAL_SD, 0.0, 0.0, 0.0),
    "RADIAL": (0.2, 0.1, 0.0, 0.0),
    "OPENCV": (0.2, 0.1, 0.005, 0.005),
    "RADIAL_FISHEYE": (0.1, 0.05, 0.0, 0.0),
    "OPENCV_FISHEYE": (0.1, 0.05, 0.02, 0.01),
}
FISHEYES = ("RADIAL_FISHEYE", "OPENCV_FISHEYE")
STRONG_RADIAL = -0.15  # k1 of a barrel distortion, from which on fisheye lenses are tried
CHOICE_OBSERVATIONS = 6_000  # that decide on the lens
CHOICE_STEPS, CHOICE_GAIN = 15, 0.5  # of each adjustment that is compared; far below what a term must gain
PROMISE = 0.5  # of what the terms of a lens must gain, that one step is expected to gain: then they are estimated
CHOICE_VIEWS, CHOICE_POINTS = 3, 100  # of a camera, from which on its distortion can be told
LEAST_SEEN = 0.95  # of a photo's pixels, that a lens must have rays for


@dataclass(frozen=True)
class LensProblem:
    """A bundle with the priors of its poses and focal lengths, and the `shared` cameras that are estimated in it."""

    bundle: Bundle
    priors: Priors
    start_K: np.ndarray
    shared: Sequence[SharedCamera]

    def adjusted(
        self, lens: str, start: Bundle, steps: int = MAX_STEPS, min_gain: float = MIN_GAIN
    ) -> AdjustedBundle | None:
        """The solution with the terms of `lens`, from the cameras, poses and points of `start`."""
        start, priors = self._with_terms(lens, start)
        return adjust_bundle(start, priors, self.start_K, steps, min_gain)

    def expected_gain(self, lens: str, start: Bundle) -> float:
        """What a step from `start` is expected to gain with the terms of `lens`."""
        start, priors = self._with_terms(lens, start)
        return expected_gain(start, priors, self.start_K)

    def _with_terms(self, lens: str, start: Bundle) -> tuple[Bundle, Priors]:
        """`start` without the terms that `lens` does not have, and the priors with its terms."""
        unknown = np.array([not camera.lens_known for camera in self.shared])
        simple = np.where([camera.fixed for camera in self.shared], NO_LENS, "SIMPLE_RADIAL")
        lenses = np.where(self.tells_distortion(), lens, simple)
        sds = np.array([LENSES[name] for name in lenses]) * unknown[:, None]
        known = np.array([_terms_of(camera.camera) is not None for camera in self.shared]) & ~unknown
        keep = (sds > 0) | known[:, None]
        start = replace(start, distortion=np.where(keep, start.distortion, 0.0))
        return start, replace(self.priors, distortion_sd=sds)

    def started(self, other: Bundle) -> Bundle:
        """The bundle with the cameras and poses of `other`, which has all or some of its points."""
        if len(other.points_world) == len(self.bundle.points_world):
            return other
        return replace(
            self.bundle,
            K=other.K,
            distortion=other.distortion,
            fisheye=other.fisheye,
            world_from_cam=other.world_from_cam,
        )

    def tells_distortion(self) -> np.ndarray:
        """(C,) bool: the cameras with enough views and points."""
        views = np.bincount(self.bundle.camera_ids, minlength=len(self.shared))
        points = np.bincount(self.bundle.camera_ids[self.bundle.view], minlength=len(self.shared))
        return (views >= CHOICE_VIEWS) & (points >= CHOICE_POINTS)

    def cameras(self, lens: str, bundle: Bundle) -> list[Camera]:
        """The cameras of a solution with the terms of `lens`."""
        enough, found = self.tells_distortion(), []
        for row, shared in enumerate(self.shared):
            if shared.lens_known:
                found.append(shared.camera)
                continue
            own = lens if enough[row] else NO_LENS if shared.fixed else "SIMPLE_RADIAL"
            terms = np.where(np.array(LENSES[own]) > 0, bundle.distortion[row], 0.0)
            found.append(_camera(own, bundle.K[row], terms, shared.width, shared.height))
        return found


def _camera(lens: str, K: np.ndarray, terms: np.ndarray, width: int, height: int) -> Camera:
    fx, fy, cx, cy = map(float, (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    if lens in ("SIMPLE_RADIAL", "RADIAL", "RADIAL_FISHEYE") and fx != fy:
        lens = "OPENCV_FISHEYE" if lens in FISHEYES else "OPENCV"
    focals = (fx,) if MODELS[lens].focals == 1 else (fx, fy)
    count = len(MODELS[lens].parameters) - len(focals) - 2
    return Camera(lens, (*focals, cx, cy, *map(float, terms[:count])), width, height)


def _choose_lens(problem: LensProblem, before: Sequence[Camera]) -> tuple[str, Bundle] | None:
    """The lens of the cameras whose lens is not known, and a start for it; None where the points do not determine it.

    Each model is adjusted, from the solution of the simpler one. The one with the least Bayesian information criterion
    is chosen (G. Schwarz, 1978): the cost of the errors, by the standard deviation that the best model leaves, plus the
    logarithm of the number of errors for each parameter. Fisheye models are tried where a barrel distortion is strong.
    """
    base = NO_LENS if all(camera.fixed for camera in problem.shared) else "SIMPLE_RADIAL"
    whole = problem.bundle
    if len(whole.view) > CHOICE_OBSERVATIONS:
        few, _, _ = restrict(whole, np.ones(len(whole.view), bool), longest_tracks(whole, CHOICE_OBSERVATIONS))
        problem = replace(problem, bundle=few)
    previous = next((camera.model for camera in before if camera.model in FISHEYES), None)
    if previous is not None:
        return previous if problem.tells_distortion().any() else base, whole
    unknown = problem.tells_distortion() & np.array([not camera.lens_known for camera in problem.shared])
    if not unknown.any():
        return base, whole
    adjusted = problem.adjusted(base, problem.bundle, CHOICE_STEPS, CHOICE_GAIN)
    if adjusted is None:
        return None
    solutions = {base: adjusted}
    for lens in ("SIMPLE_RADIAL", "RADIAL", "OPENCV"):
        if lens not in solutions and _promises(problem, lens, *list(solutions.items())[-1]):
            last = list(solutions.values())[-1].bundle
            _try_lens(problem, lens, last, solutions)
    radial = [found.bundle.distortion[unknown, 0].min() for found in solutions.values()]
    if min(radial) < STRONG_RADIAL:
        start = solutions.get("SIMPLE_RADIAL", adjusted).bundle
        terms = np.zeros_like(start.distortion)
        terms[:, 0] = start.distortion[:, 0] + 1 / 3  # tan(a) = a + a³ / 3 …
        fisheye = replace(
            start,
            distortion=np.where(unknown[:, None], terms, start.distortion),
            fisheye=unknown | start.fisheye,
        )
        for lens in FISHEYES:
            _try_lens(problem, lens, solutions[FISHEYES[0]].bundle if FISHEYES[0] in solutions else fisheye, solutions)
    sigma_px = min(found.sigma_px for found in solutions.values())
    scores = {lens: _information_criterion(lens, found.bundle, sigma_px) for lens, found in solutions.items()}
    best = min(scores, key=scores.__getitem__)
    return best, solutions[best].bundle


def _promises(problem: LensProblem, lens: str, simpler: str, solution: AdjustedBundle) -> bool:
    """Whether the terms of `lens` are expected to gain, from the solution of a `simpler` one, what they must."""
    gain = problem.expected_gain(lens, solution.bundle) - problem.expected_gain(simpler, solution.bundle)
    return not gain < PROMISE * (_penalty(lens, solution.bundle) - _penalty(simpler, solution.bundle))


def _try_lens(problem: LensProblem, lens: str, start: Bundle, solutions: dict[str, AdjustedBundle]) -> None:
    """Adds the solution with `lens`, unless there is none, or one whose cameras do not see most of their photos."""
    found = problem.adjusted(lens, start, CHOICE_STEPS, CHOICE_GAIN)
    if found is not None and all(_seen_share(camera) >= LEAST_SEEN for camera in problem.cameras(lens, found.bundle)):
        solutions[lens] = found


def _information_criterion(lens: str, bundle: Bundle, sigma_px: float) -> float:
    square = (bundle.residuals_px() ** 2).sum(-1)
    square = np.where(np.isfinite(square), square, 1e12)
    kernel_px = 3 * sigma_px
    cost = kernel_px**2 * np.log1p(square / kernel_px**2).sum() / (CORRELATION * sigma_px) ** 2
    return float(cost) + _penalty(lens, bundle)


def _penalty(lens: str, bundle: Bundle) -> float:
    """The logarithm of the number of errors for each term of the lens."""
    return len(bundle.K) * int(np.count_nonzero(LENSES[lens])) * float(np.log(2 * len(bundle.view)))


def _seen_share(camera: Camera) -> float:
    """The share of an image's pixels that the camera has rays for."""
    if camera.is_pinhole:
        return 1.0
    x, y = np.meshgrid(np.linspace(0, camera.width - 1, 15), np.linspace(0, camera.height - 1, 15))
    return float(np.isfinite(camera.unproject(np.stack([x, y], axis=-1))).all(-1).mean())


# Parts of a bundle.


def longest_tracks(bundle: Bundle, most: int, least: int = LEAST_OBSERVATIONS) -> np.ndarray:
    """(P,) bool: the points with the longest tracks, up to `most` observations; and of each view with less than `least`
    of them, more of its own."""
    track_length = np.bincount(bundle.point, minlength=len(bundle.points_world))
    order = np.argsort(-track_length, kind="stable")
    selected = np.zeros(len(track_length), bool)
    selected[order[np.cumsum(track_length[order]) <= most]] = True
    for view in np.flatnonzero(np.bincount(bundle.view, selected[bundle.point]) < least):
        own = bundle.point[bundle.view == view]
        selected[own[np.lexsort((-track_length[own], ~selected[own]))][:least]] = True
    return selected


def with_adjusted_points(
    model: SfmModel, before: Bundle, valid: np.ndarray, after: Bundle, views: Sequence[int], limit_px: float
) -> SfmModel:
    """The model with the poses and points of `after`, which has the `valid` observations of `before`, without the
    observations whose error is above the limit."""
    _, used, used_points = restrict(before, valid, np.ones(len(before.points_world), bool))
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


FIXED_SD = 1e-9  # below it the focal length was given
UNCERTAIN = 0.03  # of the focal length, one standard deviation: beyond it a note warns
EACH_UP_TO = 3  # cameras


def calibration_notes(views: Sequence[View]) -> tuple[str, ...]:
    """The focal length of each camera before and after calibration, with its standard deviation (of many cameras a
    summary), and a warning where the photos hardly determine it."""
    cameras: dict[tuple[float, ...], list[View]] = {}
    for view in views:
        if view.calibration is not None:
            key = view.calibration.focal_before_px, view.K[0, 0], view.calibration.focal_sd, *view.camera.distortion
            cameras.setdefault(tuple(map(float, key)), []).append(view)
    if not cameras:
        estimated = any(view.registered and view.focal_source == "estimated" for view in views)
        if not estimated:
            return ()
        return ("focal lengths were estimated with the cameras; their uncertainty is unknown",)
    notes = []
    if len(cameras) <= EACH_UP_TO:
        for (before_px, focal_px, sd, *_), group in cameras.items():
            name = group[0].image if len(group) == 1 else f"{len(group)} photos"
            if sd > FIXED_SD:
                notes.append(f"focal length of {name}: {before_px:.0f} -> {focal_px:.0f} px, +- {sd:.1%}")
            if not group[0].camera.is_pinhole and (sd <= FIXED_SD or group[0].camera.model != "SIMPLE_RADIAL"):
                notes.append(f"lens of {name}: {_lens_text(group[0].camera)}, estimated from the photos")
    else:
        sds = np.array([sd for _, _, sd, *_ in cameras])
        changes = np.array([focal_px / before_px - 1 for before_px, focal_px, *_ in cameras])
        notes.append(
            f"focal lengths of {len(cameras)} cameras were estimated: changed by {np.median(np.abs(changes)):.1%} "
            f"(median), +- {np.median(sds):.1%} (median), +- {sds.max():.1%} (largest)"
        )
    worst = max(sd for _, _, sd, *_ in cameras)
    if worst > UNCERTAIN:
        notes.append(
            f"the photos hardly determine the focal length (+- {worst:.0%}), and depths and angles have errors with "
            "it; give --intrinsics or --fov-deg, or add photos of the same place in other viewing directions"
        )
    return tuple(notes)


def _lens_text(camera: Camera) -> str:
    """The model and its distortion, for people."""
    names = camera.kind.parameters[camera.kind.focals + 2 :]
    terms = ", ".join(f"{name} {value:.3g}" for name, value in zip(names, camera.distortion) if value)
    return f"{camera.model} ({terms})"
