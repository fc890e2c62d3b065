"""Calibration of a mapped model: focal lengths and lenses under priors, and their uncertainty."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dune_cli.geometry.bundle_adjustment import (
    CORRELATION,
    MAX_STEPS,
    MIN_GAIN,
    PRINCIPAL_SD,
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
from dune_cli.sfm.scene import CameraSd, SfmModel

# of the logarithm of a focal length: from 55 degrees, one deviation reaches 38 and 76 degrees across the long side
GUESS_SD, EXIF_SD = 0.4, 0.05
RADIAL_SD = 0.1  # of COLMAP's k of SIMPLE_RADIAL; phones and reflex cameras are within 0.1, action cameras at -0.25
IMPLAUSIBLE_RADIAL, IMPLAUSIBLE_AT_BORDER = 0.4, 0.1  # the term, and the share by which it moves the border
IMPLAUSIBLE = 3.0  # standard deviations, beyond which COLMAP is taken to have diverged
OUTLYING_PRIOR = 3.0  # standard deviations beyond which a prior is dropped: a cropped photo keeps the original's EXIF
CROPPED_SD = 0.2  # of the long side: the principal point of a cropped photo
ASPECT_SD = 0.003  # of the logarithm of fy / fx: pixels are square, but for sizes that were rounded
MAX_OBSERVATIONS = 60_000  # above, the points with the longest tracks alone calibrate the cameras
LAST_STEPS = 2  # of all the points together
MIN_POINTS = 6
LEAST_OBSERVATIONS = 20  # of a view, where only some of the points are used: few leave its pose undetermined
WIDE_DEG = 100.0  # of field of view, beyond which pixels are not undistorted into a plane
MAX_ERROR_PX = 4.0  # of a point, in matched pixels, as in COLMAP


def implausible_cameras(cameras: Mapping[int, Camera], shared: Sequence[SharedCamera]) -> dict[int, Camera]:
    """Where some of the calibrated `cameras` are implausible, all of them, these as before calibration; else empty."""
    initial = {n: initial_camera(shared[n]) for n in cameras if not shared[n].fixed}
    reset = {n: before for n, before in initial.items() if _is_implausible(cameras[n], before)}
    return {**cameras, **reset} if reset else {}


def _is_implausible(camera: Camera, before: Camera) -> bool:
    """A focal length far from the one before, or a radial term that no lens has: at the border of a telephoto even a
    large one is little."""
    focal_px = camera.params[0]
    if abs(np.log(focal_px / before.params[0])) > IMPLAUSIBLE * GUESS_SD:
        return True
    radial = abs(camera.first_radial)
    at_border = radial * (0.5 * max(camera.width, camera.height) / focal_px) ** 2
    return radial > IMPLAUSIBLE_RADIAL and at_border > IMPLAUSIBLE_AT_BORDER


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

    Lenses that are not known get the `Lens` that the points support (`_choose_lens`). `fixed_poses`: photos
    whose pose is kept. `centres`: photo -> prior of its centre (3,), with standard deviation `centre_sd`. Where all
    cameras are known the poses alone are adjusted, with a loss that outliers move less than COLMAP's. None where the
    points do not determine the cameras, and where nothing is to be estimated.
    """
    views = sorted(model.world_from_cam)
    used = sorted({cameras.ids[index] for index in views})
    shared = [cameras.shared[n] for n in used]
    bundle = bundle_of(model, correspondences, cameras, views, used)
    start_K, focal_sd, has_prior = focal_priors(shared)
    is_fixed = np.array([camera.fixed for camera in shared])
    held = all(index in fixed_poses for index in views)
    if held and all(camera.fixed and camera.lens_known for camera in shared):
        return None
    priors = Priors(
        focal_sd,
        np.zeros((len(used), TERMS)),
        np.array([index in fixed_poses for index in views]),
        np.stack([centres.get(index, np.full(3, np.nan)) for index in views]) if centres else None,
        centre_sd,
        principal_sd=principal_sds(shared, [model.cameras[n].K for n in used]),
        principal_known=principal_known(shared),
    )
    in_front = np.isfinite(bundle.residuals_px()).all(-1)
    every = np.ones(len(bundle.points_world), bool)
    selected = longest_tracks(bundle, MAX_OBSERVATIONS)
    part, _, _ = restrict(bundle, in_front, selected)
    if len(part.points_world) < MIN_POINTS:
        return None
    problem = LensProblem(part, priors, start_K, shared)
    chosen = _choose_lens(problem, [model.cameras[n] for n in used])
    if chosen is None:
        return None
    lens, start = chosen
    is_known = bool(is_fixed.all()) and lens.model == NO_LENS
    if is_known and held:
        return None
    adjusted = problem.adjusted(lens, problem.started(start))
    if adjusted is None:
        return None
    change = np.abs(np.log(adjusted.bundle.K[:, 0, 0] / start_K[:, 0, 0]))
    outlying = has_prior & (change > OUTLYING_PRIOR * focal_sd)
    cropped_sd = principal_sds(shared, list(adjusted.bundle.K))
    if outlying.any() or (lens.principal and (cropped_sd > priors.principal_sd).any()):
        focal_sd = np.where(outlying, GUESS_SD, focal_sd)
        problem = replace(problem, priors=replace(priors, log_focal_sd=focal_sd, principal_sd=cropped_sd))
        adjusted = problem.adjusted(lens, adjusted.bundle) or adjusted
    if not selected.all():  # the other points follow the cameras, and have their part in the last steps
        whole, _, _ = restrict(bundle, in_front, every)
        problem = replace(problem, bundle=whole)
        adjusted = problem.adjusted(lens, carry_points(problem.started(adjusted.bundle), whole), LAST_STEPS)
        if adjusted is None:
            return None
    calibrated = model
    if not is_known:
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


def principal_sds(shared: Sequence[SharedCamera], K: Sequence[np.ndarray]) -> np.ndarray:
    """(C,) the standard deviations of the principal points, should they be estimated, as shares of the long side. Those
    of the cameras `K` that are far from the middle have none but that of a cropped photo."""
    found = []
    for camera, own in zip(shared, K):
        off = np.abs((own - initial_camera(camera).K)[:2, 2]).max() / max(camera.width, camera.height)
        found.append(CROPPED_SD if off > OUTLYING_PRIOR * PRINCIPAL_SD else PRINCIPAL_SD)
    return np.array(found)


def principal_known(shared: Sequence[SharedCamera]) -> np.ndarray:
    """(C,) bool: the cameras whose principal point was given with the lens, or away from the middle."""
    middle = [(np.array([camera.width, camera.height]) - 1) / 2 for camera in shared]
    off = [np.abs(camera.K[:2, 2] - own).max() > SAME_PX for camera, own in zip(shared, middle)]
    return np.array([camera.fixed and (camera.lens_known or far) for camera, far in zip(shared, off)])


def camera_sds(
    adjusted: AdjustedBundle, shared: Sequence[SharedCamera], found: Sequence[Camera], used: Sequence[int]
) -> dict[int, CameraSd]:
    """`SfmModel.camera_sd` of the cameras that were `found`, whose indices are `used`."""
    return {
        n: CameraSd(
            float(adjusted.log_focal_sd[row]),
            tuple(map(float, adjusted.distortion_sd[row]))[: len(camera.distortion)],
            tuple(map(float, adjusted.principal_sd_px[row])),
        )
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
    adjustment does not have are those of its `_ideal` camera."""
    row_of = {n: row for row, n in enumerate(used)}
    own = {n: _terms_of(model.cameras[n]) for n in used}
    ideal = {n: _ideal(model.cameras[n]) for n in used if own[n] is None}
    view, point, pixels = [], [], []
    for row, index in enumerate(views):
        points, keypoints = model.observations[index]
        camera = cameras.ids[index]
        seen = correspondences.keypoints[index][keypoints]
        view.append(np.full(len(points), row))
        point.append(points)
        if camera in ideal:
            seen = ideal[camera].project(model.cameras[camera].unproject(seen))
        pixels.append(seen)
    shared = [cameras.shared[n] for n in used]
    terms = [own[n] or ((0.0,) * TERMS, ideal[n].kind.fisheye) for n in used]
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


def _ideal(camera: Camera) -> Camera:
    """The camera without distortion whose pixels are those of `camera` in its middle: PINHOLE, or FISHEYE of a fisheye
    or wide lens, whose pixels would be far larger in a plane."""
    wide = camera.kind.fisheye or camera.field_of_view_deg() > WIDE_DEG
    K = camera.K
    params = tuple(map(float, (K[0, 0], K[1, 1], K[0, 2], K[1, 2])))
    return Camera("FISHEYE" if wide else "PINHOLE", params, camera.width, camera.height)


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
PERSPECTIVES = tuple(model for model in LENSES if model not in FISHEYES)
STRONG_RADIAL = -0.15  # k1 of a barrel distortion, from which on fisheye lenses are tried
NARROW, FISHEYE_PENALTY = 1.5, 50.0  # the long side by the focal length, below which fisheye terms cost so much more
WIDE_FOCAL = 0.5  # of the long side: so short a focal length, too
CHOICE_OBSERVATIONS = 6_000  # that decide on the lens
CHOICE_STEPS, CHOICE_GAIN = 15, 0.5  # of each adjustment that is compared; far below what a term must gain
TOLD = 1 / 3  # of a principal point's standard deviation, which photos that tell it leave at most
FAR = 5.0  # of these standard deviations, beyond which a point that moved is told all the same
PROMISE = 0.5  # of what the terms of a lens must gain, that one step is expected to gain: then they are estimated
CHOICE_VIEWS, CHOICE_POINTS = 3, 100  # of a camera, from which on its distortion can be told
SAME_PX = 1e-6
LEAST_SEEN = 0.95  # of a photo's pixels, that a lens must have rays for


@dataclass(frozen=True)
class Lens:
    """What is estimated of lenses: the terms of a `model` of LENSES; the `principal` points of the cameras in these
    rows; and whether the `aspect`, fy / fx."""

    model: str
    principal: tuple[int, ...] = ()
    aspect: bool = False

    def penalty(self, bundle: Bundle) -> float:
        """What these parameters of all cameras must gain of the cost: those of the model the logarithm of the number of
        errors each (G. Schwarz, 1978), principal point and aspect, which are never quite where they are without, 2 each
        (H. Akaike, 1974). Fisheye terms of a narrow lens, which is hardly one, may stand for those of a usual lens and
        the principal point of a cropped photo: they must gain FISHEYE_PENALTY."""
        of_model = np.count_nonzero(LENSES[self.model]) * np.log(2 * len(bundle.view))
        narrow = bool((bundle.long_side_px / bundle.K[:, 0, 0]).max() < NARROW)
        of_kind = FISHEYE_PENALTY * (narrow and self.model in FISHEYES)
        return float(of_kind + len(bundle.K) * (of_model + 2 * self.aspect) + 2 * 2 * len(self.principal))


@dataclass(frozen=True)
class LensProblem:
    """A bundle with the priors of its poses and focal lengths, and the `shared` cameras that are estimated in it."""

    bundle: Bundle
    priors: Priors
    start_K: np.ndarray
    shared: Sequence[SharedCamera]

    def adjusted(
        self, lens: Lens, start: Bundle, steps: int = MAX_STEPS, min_gain: float = MIN_GAIN
    ) -> AdjustedBundle | None:
        """The solution with the terms of `lens`, from the cameras, poses and points of `start`."""
        start, priors = self._with_terms(lens, start)
        return adjust_bundle(start, priors, self.start_K, steps, min_gain)

    def expected_gain(self, lens: Lens, start: Bundle) -> float:
        """What a step from `start` is expected to gain with the terms of `lens`."""
        start, priors = self._with_terms(lens, start)
        return expected_gain(start, priors, self.start_K)

    def told_principal(self, lens: Lens, found: AdjustedBundle) -> tuple[int, ...]:
        """The principal points that `lens` has free, and that the photos tell, in the solution `found`: they are known
        far better than before, or are far from there. That others, which are fixed, are uncertain does not count: no
        other place of theirs is more likely."""
        _, priors = self._with_terms(lens, found.bundle)
        assert priors.principal_sd is not None
        before_px = (priors.principal_sd * found.bundle.long_side_px)[:, None]
        moved_px = np.abs(found.bundle.K[:, :2, 2] - self.start_K[:, :2, 2])
        sd_px = found.principal_alone_sd_px
        told = (sd_px <= TOLD * before_px) | (moved_px > FAR * sd_px)
        return tuple(row for row in lens.principal if told[row].all())

    def _with_terms(self, lens: Lens, start: Bundle) -> tuple[Bundle, Priors]:
        """`start` without the terms that `lens` does not have, and the priors with its terms."""
        unknown = np.array([not camera.lens_known for camera in self.shared])
        fixed = np.array([camera.fixed for camera in self.shared])
        tells = self.tells_distortion()
        lenses = np.where(tells, lens.model, np.where(fixed, NO_LENS, "SIMPLE_RADIAL"))
        sds = np.array([LENSES[name] for name in lenses]) * unknown[:, None]
        known = np.array([_terms_of(camera.camera) is not None for camera in self.shared]) & ~unknown
        keep = (sds > 0) | known[:, None]
        start = replace(start, distortion=np.where(keep, start.distortion, 0.0))
        free = self.free()
        principal = np.zeros(len(free)) if self.priors.principal_sd is None else self.priors.principal_sd
        priors = replace(
            self.priors,
            distortion_sd=sds,
            principal_sd=np.where(free & np.isin(np.arange(len(free)), lens.principal), principal, 0.0),
            aspect_sd=np.where(free & lens.aspect, ASPECT_SD, 0.0),
        )
        return start, priors

    def free(self) -> np.ndarray:
        """(C,) bool: the cameras of which principal point and aspect can be estimated."""
        return self.tells_distortion() & np.array([not (one.lens_known or one.fixed) for one in self.shared])

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

    def cameras(self, lens: Lens, bundle: Bundle) -> list[Camera]:
        """The cameras of a solution with the terms of `lens`."""
        enough, found = self.tells_distortion(), []
        for row, shared in enumerate(self.shared):
            if shared.lens_known:
                found.append(shared.camera)
                continue
            own = lens.model if enough[row] else NO_LENS if shared.fixed else "SIMPLE_RADIAL"
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


def lens_of(cameras: Sequence[Camera], shared: Sequence[SharedCamera]) -> Lens:
    """What was estimated of calibrated cameras whose lens was not known."""
    pairs = [(camera, one) for camera, one in zip(cameras, shared) if not one.lens_known]
    models = [name for name in LENSES if name in [camera.model for camera, _ in pairs]]
    fisheyes = [name for name in models if name in FISHEYES]
    free = {n: camera.K for n, (camera, one) in enumerate(zip(cameras, shared)) if not (one.lens_known or one.fixed)}
    off_px = {n: np.abs((K - initial_camera(shared[n]).K)[:2, 2]).max() for n, K in free.items()}
    principal = tuple(n for n, off in off_px.items() if off > SAME_PX)
    aspect = any(abs(K[0, 0] - K[1, 1]) > SAME_PX for K in free.values())
    return Lens((fisheyes or models or [NO_LENS])[-1], principal, aspect)


def _choose_lens(problem: LensProblem, before: Sequence[Camera]) -> tuple[Lens, Bundle] | None:
    """The lens of the cameras whose lens is not known, and a start for it; None where the points do not determine it.

    Each model is adjusted, from the solution of the simpler one. The one with the least information criterion is
    chosen: the cost of the errors, by the standard deviation that the best model leaves, plus the penalty of its
    parameters (`Lens.penalty`). Fisheye models are tried where a barrel distortion is strong; principal point and
    aspect with the best models of both kinds, unless they are free from `before`.
    """
    known, whole = lens_of(before, problem.shared), problem.bundle
    simplest = NO_LENS if all(camera.fixed for camera in problem.shared) else "SIMPLE_RADIAL"
    base = replace(known, model=simplest)
    if len(whole.view) > CHOICE_OBSERVATIONS:
        few, _, _ = restrict(whole, np.ones(len(whole.view), bool), longest_tracks(whole, CHOICE_OBSERVATIONS))
        problem = replace(problem, bundle=few)
    if known.model in FISHEYES:
        return known if problem.tells_distortion().any() else base, whole
    unknown = problem.tells_distortion() & np.array([not camera.lens_known for camera in problem.shared])
    if not unknown.any():
        return base, whole
    trials = _Trials(problem)
    if not trials.add(base, problem.bundle, checked=False):
        return None
    for model in ("SIMPLE_RADIAL", "RADIAL", "OPENCV"):
        simpler, lens = list(trials.solutions)[-1], replace(base, model=model)
        if lens not in trials.solutions and trials.promises(lens, simpler):
            trials.add(lens, trials.solutions[simpler].bundle)
    found = [solution.bundle for solution in trials.solutions.values()]
    radial = min(bundle.distortion[unknown, 0].min() for bundle in found)
    focal = min((bundle.K[unknown, 0, 0] / bundle.long_side_px[unknown]).min() for bundle in found)
    if radial < STRONG_RADIAL or focal < WIDE_FOCAL:
        fisheye = _as_fisheyes(trials.solutions[trials.best() or base].bundle, unknown, problem.shared)
        for model in FISHEYES:
            if trials.add(replace(base, model=model), fisheye):
                fisheye = trials.solutions[replace(base, model=model)].bundle
    free = tuple(np.flatnonzero(problem.free()).tolist())
    for models in (FISHEYES, PERSPECTIVES) if free else ():
        for aspect in (False, True):
            own = trials.best(models)
            lens = own and replace(own, principal=own.principal or free, aspect=own.aspect or aspect)
            if own is not None and lens not in trials.solutions and trials.promises(lens, own):
                trials.add(lens, trials.solutions[own].bundle)
    best = trials.best()
    return best, trials.solutions[best].bundle


def _as_fisheyes(start: Bundle, rows: np.ndarray, shared: Sequence[SharedCamera]) -> Bundle:
    """`start` with fisheye lenses for the cameras `rows` (C,): those focal lengths, where they are not fixed, and two
    terms that explain best at which distance from the middle the points are seen."""
    pose, camera = start.world_from_cam[start.view], start.camera_ids[start.view]
    in_cam = np.einsum("nji,nj->ni", pose[:, :3, :3], start.points_world[start.point] - pose[:, :3, 3])
    K, distortion = start.K.copy(), start.distortion.copy()
    for row in np.flatnonzero(rows):
        own = camera == row
        angle = np.arctan2(np.linalg.norm(in_cam[own, :2], axis=1), in_cam[own, 2])
        radius = np.linalg.norm((start.pixels[own] - K[row, :2, 2]) / np.diag(K[row])[:2], axis=1)
        powers = np.stack([angle, angle**3, angle**5], axis=1)
        if shared[row].fixed:
            terms = np.linalg.lstsq(powers[:, 1:], radius - angle, rcond=None)[0]
        else:
            focal, *terms = np.linalg.lstsq(powers, radius, rcond=None)[0]
            if focal > 0:
                K[row, :2, :2] *= focal
                terms = np.array(terms) / focal
            else:
                terms = (distortion[row, 0] + 1 / 3, 0.0)  # tan(a) = a + a³ / 3 …
        distortion[row] = (*terms, 0.0, 0.0)
    return replace(start, K=K, distortion=distortion, fisheye=rows | start.fisheye)


@dataclass(frozen=True)
class _Trials:
    """The solutions of a problem with several lenses."""

    problem: LensProblem
    solutions: dict[Lens, AdjustedBundle] = field(default_factory=dict)

    def promises(self, lens: Lens, simpler: Lens) -> bool:
        """Whether `lens` is expected to gain, from the solution of a `simpler` one, what it must."""
        start = self.solutions[simpler].bundle
        gain = self.problem.expected_gain(lens, start) - self.problem.expected_gain(simpler, start)
        return not gain < PROMISE * (lens.penalty(start) - simpler.penalty(start))

    def add(self, lens: Lens, start: Bundle, checked: bool = True) -> bool:
        """Adds the solution with `lens`, of its principal points with those alone that the photos tell; whether there
        is one, whose cameras see most of their photos (`checked`)."""
        found = self.problem.adjusted(lens, start, CHOICE_STEPS, CHOICE_GAIN)
        if found is not None and (told := self.problem.told_principal(lens, found)) != lens.principal:
            lens = replace(lens, principal=told)
            found = self.problem.adjusted(lens, start, CHOICE_STEPS, CHOICE_GAIN) if told else None
        if found is None or self.problem.told_principal(lens, found) != lens.principal:
            return False
        cameras = self.problem.cameras(lens, found.bundle) if checked else []
        if any(_seen_share(camera) < LEAST_SEEN for camera in cameras):
            return False
        self.solutions[lens] = found
        return True

    def best(self, models: Collection[str] = tuple(LENSES)) -> Lens | None:
        """The lens of one of these models with the least information criterion."""
        sigma_px = min(found.sigma_px for found in self.solutions.values())
        scores = {
            lens: _information_criterion(lens, found.bundle, sigma_px)
            for lens, found in self.solutions.items()
            if lens.model in models
        }
        return min(scores, key=scores.__getitem__) if scores else None


def _information_criterion(lens: Lens, bundle: Bundle, sigma_px: float) -> float:
    square = (bundle.residuals_px() ** 2).sum(-1)
    square = np.where(np.isfinite(square), square, 1e12)
    kernel_px = 3 * sigma_px
    cost = kernel_px**2 * np.log1p(square / kernel_px**2).sum() / (CORRELATION * sigma_px) ** 2
    return float(cost) + lens.penalty(bundle)


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
