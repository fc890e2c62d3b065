"""Bundle adjustment with priors on the cameras, and the uncertainty of what it estimates.

Poses, points and cameras (focal length, distortion, aspect, principal point) by Levenberg-Marquardt on the normal
equations, the points eliminated (B. Triggs et al., "Bundle adjustment: a modern synthesis", 2000, sections 6 and 9).
Ceres, as pycolmap exposes it, takes no prior on a focal length. Without one, motions that do not determine it (a camera
that translates and never rotates, few photos, little parallax: P. Sturm, "Critical motion sequences for monocular
self-calibration", CVPR 1997) leave it anywhere. float64, numpy and scipy; pixels have their centres at integers. A
camera is a set of intrinsics that views share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dune_cli.geometry.absolute_pose import pose_jacobian
from dune_cli.geometry.normal_equations import ASPECT, CAMERA, POSE, PRINCIPAL, Derivatives, NormalEquations
from dune_cli.geometry.poses import cross_matrix, rotation_from_rotvec

MODE_SIZE = 10  # log of the focal factor, radial term, principal point; rotation vector, centre
MAX_STEPS = 40
MIN_GAIN, MIN_DAMPING = 0.05, 1e-10
MANY_VIEWS = 50
ROUGH = 1e-3  # of the cost, that the first fit's last step gains
SMALL_GAINS = 6  # one after the other, in which the damping falls by 8 each time, end the adjustment
PRIOR_DAMPING = 1e-8  # with priors of centres, which leave the turn about them open where they lie on a line
PROBES = 16  # random vectors that estimate a trace (M. Hutchinson, 1990)
NEAR = 0.05  # gain of a step as a share of the cost, below which the loss's second derivative is used
LEAST_BEND = 0.3  # of the loss's curvature along a residual, which is negative for outliers
POINT_STEPS = 4  # of the points alone
CORRELATION = 2.0  # factor on the error of a match: errors of one keypoint in several matches are correlated
MIN_SIGMA_PX = 0.15
PRINCIPAL_SD = 0.01  # of the long side: uncertainty of the principal point, where it is not estimated
MAX_MODES = 12


@dataclass(frozen=True)
class Priors:
    """Gaussian priors.

    `log_focal_sd` (C,): of the logarithm of each camera's focal length about its start (0: it is fixed).
    `distortion_sd` (C, 4): of each term of its distortion about 0 (0: it is fixed). `aspect_sd` (C,): of the logarithm
    of fy / fx about its start, and `principal_sd` (C,): of each coordinate of the principal point about its start, as a
    share of the long side (0: fixed; None: all are). `principal_known` (C,): the cameras whose principal point is exact
    where it is fixed (None: none's). `pose_fixed` (V,): views whose pose is kept (None: no view's). `centres` (V, 3):
    of the views' centres, NaN without one, with `centre_sd`, one number or (V, 3) (None: there are none).
    """

    log_focal_sd: np.ndarray
    distortion_sd: np.ndarray
    pose_fixed: np.ndarray | None = None
    centres: np.ndarray | None = None
    centre_sd: float | np.ndarray = 1.0
    aspect_sd: np.ndarray | None = None
    principal_sd: np.ndarray | None = None
    principal_known: np.ndarray | None = None

    @property
    def camera_sd(self) -> np.ndarray:
        """(C, 8) of the parameters of a camera in `normal_equations`."""
        sds = np.zeros((len(self.log_focal_sd), CAMERA))
        sds[:, 0], sds[:, 1:ASPECT] = self.log_focal_sd, self.distortion_sd
        if self.aspect_sd is not None:
            sds[:, ASPECT] = self.aspect_sd
        if self.principal_sd is not None:
            sds[:, PRINCIPAL:] = self.principal_sd[:, None]
        return sds


@dataclass(frozen=True)
class Bundle:
    """V views with C cameras, P points, N observations.

    `K` (C, 3, 3), `distortion` (C, 4): k1, k2, p1, p2 of the model OPENCV, or k1 to k4 of OPENCV_FISHEYE where
    `fisheye` (C,), as in `camera_models`. `long_side_px` (C,), `camera_ids` (V,), `world_from_cam` (V, 4, 4),
    `points_world` (P, 3). Observation n: `view` (N,), `point` (N,), `pixels` (N, 2).
    """

    K: np.ndarray
    distortion: np.ndarray
    fisheye: np.ndarray
    long_side_px: np.ndarray
    camera_ids: np.ndarray
    world_from_cam: np.ndarray
    points_world: np.ndarray
    view: np.ndarray
    point: np.ndarray
    pixels: np.ndarray

    def residuals_px(self) -> np.ndarray:
        """(N, 2); inf behind the camera."""
        return _project(self)[0] - self.pixels


@dataclass(frozen=True)
class AdjustedBundle:
    """The solution, and its uncertainty.

    `log_focal_sd` (C,) and `distortion_sd` (C, 4): standard deviations, the priors included (0 where fixed).
    `principal_sd_px` (C, 2): of the principal points; PRINCIPAL_SD of the long side where they are fixed and not known.
    `principal_alone_sd_px` (C, 2): those of the estimated ones, if all that are fixed were known (0 for these).
    `modes` (M, V, 10): independent errors of the cameras, one standard deviation each, as they change every view: its
    camera's log focal, radial term (the k1 alone that acts most like the change of k1 and k2; 0 for a fisheye lens) and
    principal point in pixels, the rotation vector about the world's axes and the centre, the views aligned as well as a
    similarity can. `sigma_px`: standard deviation of a coordinate. `centre_freedom`: how many degrees of freedom the
    priors of the centres gave away: the trace of the solution's covariance in units of theirs.
    """

    bundle: Bundle
    log_focal_sd: np.ndarray
    distortion_sd: np.ndarray
    modes: np.ndarray
    sigma_px: float
    principal_sd_px: np.ndarray
    principal_alone_sd_px: np.ndarray
    centre_freedom: float = 0.0


def adjust_bundle(
    bundle: Bundle, priors: Priors, start_K: np.ndarray, steps: int = MAX_STEPS, min_gain: float = MIN_GAIN
) -> AdjustedBundle | None:
    """Minimises the reprojection errors under a Cauchy loss, weighted against the priors; those of the focal lengths
    are about `start_K` (C, 3, 3). At most `steps`, twice, until one gains less than `min_gain` of the cost, which is a
    chi square, by the cameras (then the points go on alone); of more than MANY_VIEWS views as much more as there are
    more of them.

    Observations of points that are behind their camera at the start, and points that are then seen by fewer than two,
    have no part, and such points stay where they are. The covariance is the inverse of the normal matrix at the
    solution. Principal points that are not estimated enter it with PRINCIPAL_SD (a consider covariance: S. Schmidt,
    1966). None where the points do not determine the cameras.
    """
    middle, length = _normalising_frame(bundle.world_from_cam, bundle.points_world)
    if priors.centres is not None:
        centres = (priors.centres - middle) / length
        priors = replace(priors, centres=centres, centre_sd=priors.centre_sd / length)
    in_front = np.isfinite(bundle.residuals_px()).all(-1)
    part, _, adjusted_points = restrict(bundle, in_front, np.ones(len(bundle.points_world), bool))
    try:
        problem = _Problem(_rescaled(part, middle, 1 / length), priors, start_K)
        problem.solve(steps, min_gain * max(1.0, len(bundle.world_from_cam) / MANY_VIEWS))
        sds, alone, modes = problem.uncertainty()
        principal_sd_px, alone_px = (own[:, PRINCIPAL:] * bundle.long_side_px[:, None] for own in (sds, alone))
        freedom = problem.centre_freedom()
    except np.linalg.LinAlgError:
        return None
    modes[:, :, 7:] *= length
    adjusted = _rescaled(problem.bundle, -middle / length, length)
    points = bundle.points_world.copy()
    points[adjusted_points] = adjusted.points_world
    adjusted = replace(adjusted, points_world=points, view=bundle.view, point=bundle.point, pixels=bundle.pixels)
    of_terms = sds[:, 0], sds[:, 1:ASPECT]
    return AdjustedBundle(adjusted, *of_terms, modes, problem.sigma_px, principal_sd_px, alone_px, freedom)


def restrict(bundle: Bundle, valid: np.ndarray, selected: np.ndarray) -> tuple[Bundle, np.ndarray, np.ndarray]:
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


def expected_gain(bundle: Bundle, priors: Priors, start_K: np.ndarray) -> float:
    """By how much a step of the cameras is to lessen the cost, which is a chi square, each point at its best.

    Of the same bundle with more terms of distortion free, the difference tells whether these are needed, without
    estimating them (C. R. Rao's score test, 1948). inf where the points do not determine the cameras.
    """
    problem = _Problem(bundle, priors, start_K)
    try:
        return problem._normal_equations().step(problem.least_damping)[2]
    except np.linalg.LinAlgError:
        return float("inf")


def carry_points(after: Bundle, before: Bundle) -> Bundle:
    """`after` with the points of `before`, which has its observations: moved with the first view that sees each, then
    each adjusted alone."""
    order = np.argsort(after.point, kind="stable")
    _, first = np.unique(after.point[order], return_index=True)
    view, point = after.view[order][first], after.point[order][first]
    old, new = before.world_from_cam[view], after.world_from_cam[view]
    in_cam = np.einsum("nji,nj->ni", old[:, :3, :3], before.points_world[point] - old[:, :3, 3])
    points = before.points_world.copy()
    points[point] = np.einsum("nij,nj->ni", new[:, :3, :3], in_cam) + new[:, :3, 3]
    carried = replace(after, points_world=points)
    cameras = len(after.K)
    problem = _Problem(carried, Priors(np.zeros(cameras), np.zeros((cameras, ASPECT - 1))), after.K)
    return problem._with_refined_points(carried)


def _normalising_frame(world_from_cam: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, float]:
    """The mean of the centres and a length, with which coordinates are near 1."""
    centres = world_from_cam[:, :3, 3]
    middle = centres.mean(axis=0)
    length = float(np.sqrt(((centres - middle) ** 2).sum(-1).mean()))
    distance = float(np.median(np.linalg.norm(points - middle, axis=1))) if len(points) else 1.0
    return middle, max(length, 1e-6 * distance, 1e-300)


def _rescaled(bundle: Bundle, middle: np.ndarray, factor: float) -> Bundle:
    poses = bundle.world_from_cam.copy()
    poses[:, :3, 3] = (poses[:, :3, 3] - middle) * factor
    return replace(bundle, world_from_cam=poses, points_world=(bundle.points_world - middle) * factor)


def _project(bundle: Bundle) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (N, 2), the points in their cameras (N, 3), and on their planes (N, 2): z = 1, or that of angles."""
    pose, camera = bundle.world_from_cam[bundle.view], bundle.camera_ids[bundle.view]
    points_cam = np.einsum("nji,nj->ni", pose[:, :3, :3], bundle.points_world[bundle.point] - pose[:, :3, 3])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        plane = points_cam[:, :2] / points_cam[:, 2:]
        fisheye = bundle.fisheye[camera]
        if fisheye.any():
            plane[fisheye] = _angles(points_cam[fisheye])
        distorted = _distort(plane, bundle.distortion[camera], fisheye)
        K = bundle.K[camera]
        pixels = np.einsum("nij,nj->ni", K[:, :2, :2], distorted) + K[:, :2, 2]
    pixels[~(points_cam[:, 2] > 0) & ~fisheye] = np.inf
    return pixels, points_cam, plane


def _angles(points_cam: np.ndarray) -> np.ndarray:
    """(N, 2) the direction of each point, as long as its angle from the optical axis in radians."""
    across = np.maximum(np.linalg.norm(points_cam[:, :2], axis=1), 1e-12)
    return points_cam[:, :2] * (np.arctan2(across, points_cam[:, 2]) / across)[:, None]


def _angles_by_point(points_cam: np.ndarray) -> np.ndarray:
    """(N, 2, 3) the derivatives of `_angles`."""
    xy, z = points_cam[:, :2], points_cam[:, 2]
    across = np.maximum(np.linalg.norm(xy, axis=1), 1e-12)
    square = across**2 + z**2
    factor = np.arctan2(across, z) / across
    slope = (z / square - factor) / across  # of the factor, by the distance from the axis
    by_xy = factor[:, None, None] * np.eye(2) + (slope / across)[:, None, None] * (xy[:, :, None] * xy[:, None, :])
    return np.concatenate([by_xy, (-xy / square[:, None])[:, :, None]], axis=-1)


def _radial(square: np.ndarray, terms: np.ndarray, fisheye: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The radial factor (N,) and its derivative by the squared radius (N,)."""
    k1, k2, k3, k4 = terms.T
    k3, k4 = np.where(fisheye, k3, 0.0), np.where(fisheye, k4, 0.0)
    factor = 1 + square * (k1 + square * (k2 + square * (k3 + square * k4)))
    return factor, k1 + square * (2 * k2 + square * (3 * k3 + 4 * square * k4))


def _tangential(terms: np.ndarray, fisheye: np.ndarray) -> np.ndarray:
    """(N, 2) p2 and p1: the tangential distortion of x is p r² + 2 (p·x) x."""
    return np.where(fisheye[:, None], 0.0, terms[:, [3, 2]])


def _distort(plane: np.ndarray, terms: np.ndarray, fisheye: np.ndarray) -> np.ndarray:
    square = (plane**2).sum(-1)
    p = _tangential(terms, fisheye)
    factor, _ = _radial(square, terms, fisheye)
    return plane * (factor + 2 * (p * plane).sum(-1))[:, None] + p * square[:, None]


def _distortion_by_plane(plane: np.ndarray, terms: np.ndarray, fisheye: np.ndarray) -> np.ndarray:
    """(N, 2, 2)."""
    square = (plane**2).sum(-1)
    p = _tangential(terms, fisheye)
    factor, slope = _radial(square, terms, fisheye)
    along = factor + 2 * (p * plane).sum(-1)
    outer = plane[:, :, None] * plane[:, None, :]
    mixed = plane[:, :, None] * p[:, None, :]
    return along[:, None, None] * np.eye(2) + 2 * slope[:, None, None] * outer + 2 * (mixed + np.swapaxes(mixed, 1, 2))


def _distortion_by_terms(plane: np.ndarray, fisheye: np.ndarray) -> np.ndarray:
    """(N, 2, 4)."""
    square = (plane**2).sum(-1)[:, None]
    x, y = plane.T
    by_p1 = np.stack([2 * x * y, square[:, 0] + 2 * y * y], axis=-1)
    by_p2 = np.stack([square[:, 0] + 2 * x * x, 2 * x * y], axis=-1)
    third = np.where(fisheye[:, None], plane * square**3, by_p1)
    fourth = np.where(fisheye[:, None], plane * square**4, by_p2)
    return np.stack([plane * square, plane * square**2, third, fourth], axis=-1)


class _Problem:
    """A bundle with its priors. Parameters: those of the cameras, then those of the views."""

    def __init__(self, bundle: Bundle, priors: Priors, start_K: np.ndarray) -> None:
        self.bundle, self.start_K = bundle, start_K
        views, cameras = len(bundle.world_from_cam), len(bundle.K)
        fixed = np.zeros(views, bool) if priors.pose_fixed is None else priors.pose_fixed
        pose_free = np.repeat(~fixed[:, None], POSE, axis=1)
        self.centres = np.full((views, 3), np.nan) if priors.centres is None else priors.centres
        has_prior = np.isfinite(self.centres).all(-1)
        centre_weight = np.zeros((views, POSE))
        centre_weight[has_prior, 3:] = 1 / np.broadcast_to(priors.centre_sd, (views, 3))[has_prior] ** 2
        sds = priors.camera_sd
        self.free = np.concatenate([(sds > 0).ravel(), pose_free.ravel()])
        with np.errstate(divide="ignore"):
            self.prior_weight = np.concatenate([np.where(sds > 0, 1 / sds**2, 0).ravel(), centre_weight.ravel()])
        self.first_pose, self.cameras = CAMERA * cameras, cameras
        none = np.zeros(cameras, bool)
        self.principal_known = none if priors.principal_known is None else priors.principal_known
        self.movable = not fixed.any()
        self.has_gauge = self.movable and not has_prior.any()
        self.least_damping = PRIOR_DAMPING if self.movable and has_prior.any() else MIN_DAMPING
        self.sigma_px, self.kernel_px = MIN_SIGMA_PX, MIN_SIGMA_PX
        self._estimate_sigma()

    def solve(self, steps: int, min_gain: float) -> None:
        for rough in (ROUGH, 0.0):  # the second time with the sigma that the first fit leaves
            damping, cost, bent, small = self.least_damping, self._cost(self.bundle), False, 0
            for _ in range(steps):
                after, new_cost, needed, by_cameras = self._best_step(cost, damping, bent)
                raised, damping = needed > damping, needed
                if not new_cost < cost:
                    if not bent:
                        break
                    bent = False
                    continue
                gain, cost = cost - new_cost, new_cost
                # of points that are far from their places no gain by cameras can be told
                bent = gain < NEAR * cost and not raised
                small = small + 1 if (min(gain, by_cameras) if bent else gain) < max(min_gain, rough * cost) else 0
                # so small a gain is nothing, unless damping kept the step short
                done = small == SMALL_GAINS or (small > 0 and damping <= self.least_damping)
                self.bundle = after
                if done:
                    break
                if not raised:
                    damping = max(damping / 8, self.least_damping)
            self._estimate_sigma()
        self.bundle = self._with_refined_points(self.bundle)

    def _best_step(self, cost: float, damping: float, bent: bool) -> tuple[Bundle, float, float, float]:
        """The bundle after a step, its cost, the damping with which it is less than `cost`, and the gain expected of
        the cameras. The cost is not less where no damping does, and where a step with the `bent` loss does not with the
        given one."""
        equations = self._normal_equations(bent=bent)
        while True:
            step, point_step, by_cameras = equations.step(damping)
            after = self._after_step(step, point_step)
            new_cost = self._cost(after)
            if not new_cost < cost:
                after = self._with_refined_points(after)
                new_cost = self._cost(after)
            if new_cost < cost or bent or damping >= 1e8:
                return after, new_cost, damping, by_cameras
            damping *= 8

    def uncertainty(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(C, 8) standard deviations of the cameras' parameters, those without the uncertainty of principal points that
        are fixed, and (M, V, 10) modes, in the problem's own unit."""
        equations = self._normal_equations(self.movable)
        camera_count = CAMERA * self.cameras
        columns = np.flatnonzero(self.free[:camera_count])
        views = len(self.bundle.world_from_cam)
        is_free = self.free[:camera_count].reshape(-1, CAMERA)[:, PRINCIPAL]
        fixed = ~is_free & ~self.principal_known  # (C,) principal points that are uncertain all the same
        unknown = np.zeros((self.cameras, CAMERA))
        unknown[fixed, PRINCIPAL:] = PRINCIPAL_SD
        if not len(columns):
            return unknown, np.zeros_like(unknown), np.zeros((0, views, MODE_SIZE))
        covariance_columns = equations.covariance_columns(columns)  # (parameters, columns)
        camera_block = covariance_columns[columns]
        principal_sd_px = PRINCIPAL_SD * self.bundle.long_side_px * fixed
        consider = equations.principal_point_sensitivity(principal_sd_px)  # (parameters, 2 C): changes by one sd
        covariance = 0.5 * (camera_block + camera_block.T)
        values, vectors = np.linalg.eigh(covariance)
        values = np.maximum(values, 0)
        # the change of the poses with a mode of the cameras: regression on the camera parameters
        inverse = vectors @ np.diag(1 / np.maximum(values, 1e-300)) @ vectors.T
        camera_modes = [
            covariance_columns @ inverse @ (np.sqrt(value) * vector) for value, vector in zip(values, vectors.T)
        ]
        whole = np.concatenate([np.array(camera_modes), consider.T])
        total = (whole[:, :camera_count] ** 2).sum(0)
        own = whole[:, :camera_count].reshape(-1, self.cameras, CAMERA)
        principal = own[:, :, PRINCIPAL:] * self.bundle.long_side_px[:, None]
        identity = np.eye(2 * self.cameras).reshape(-1, self.cameras, 2)
        principal[len(camera_modes) + np.arange(2 * self.cameras)] += identity * principal_sd_px[:, None]
        radial = np.where(self.bundle.fisheye, 0.0, own[:, :, 1] + self._k2_as_k1() * own[:, :, 2])
        intrinsics = np.concatenate([own[:, :, :1], radial[:, :, None], principal], axis=-1)
        poses = whole[:, camera_count:].reshape(-1, views, POSE)
        modes = np.concatenate([intrinsics[:, self.bundle.camera_ids], poses], axis=-1)
        weight = (whole**2).sum(1)
        sds = np.sqrt(total).reshape(self.cameras, CAMERA) + unknown
        alone = np.zeros(camera_count)
        alone[columns] = np.sqrt(np.maximum(np.diag(covariance), 0))
        return sds, alone.reshape(sds.shape), modes[np.argsort(-weight, kind="stable")[:MAX_MODES]]

    def centre_freedom(self) -> float:
        """The trace of the centres' covariance in units of their priors'; 0 without priors."""
        root = np.sqrt(self.prior_weight)
        root[: self.first_pose] = 0
        if not root.any():
            return 0.0
        probes = np.random.default_rng(0).choice([-1.0, 1.0], (len(root), PROBES)) * root[:, None]
        solved = self._normal_equations().covariance_times(probes, self.least_damping)
        return float((probes * solved).sum() / PROBES)

    def _k2_as_k1(self) -> np.ndarray:
        """(C,) the k1 that moves the observed pixels most like a k2 of 1."""
        _, _, plane = _project(self.bundle)
        square = np.nan_to_num((plane**2).sum(-1))
        camera = self.bundle.camera_ids[self.bundle.view]
        above, below = (np.bincount(camera, square**power, minlength=self.cameras) for power in (4, 3))
        return above / np.maximum(below, 1e-300)

    def _estimate_sigma(self) -> None:
        """The standard deviation of a coordinate, from the median residual and the degrees of freedom."""
        size = np.linalg.norm(self.bundle.residuals_px(), axis=1)
        size = size[np.isfinite(size)]
        if not len(size):
            raise np.linalg.LinAlgError("no point is in front of its cameras")
        freedom = 2 * len(size) - 3 * len(np.unique(self.bundle.point)) - int(self.free.sum())
        share = max(freedom, 1) / (2 * len(size))
        sigma = float(np.median(size)) / 1.1774 / np.sqrt(max(share, 0.05))
        self.sigma_px = max(sigma, MIN_SIGMA_PX)
        self.kernel_px = 3 * self.sigma_px
        self.scale = 1 / (CORRELATION * self.sigma_px) ** 2

    def _cost(self, bundle: Bundle) -> float:
        square = (bundle.residuals_px() ** 2).sum(-1)
        if not np.isfinite(square).all():
            return float("inf")
        robust = self.kernel_px**2 * np.log1p(square / self.kernel_px**2)
        return float(self.scale * robust.sum() + (self.prior_weight * self._prior_residuals(bundle) ** 2).sum())

    def _prior_residuals(self, bundle: Bundle) -> np.ndarray:
        """(parameters,) distances of cameras and centres from their priors."""
        logs = np.log(bundle.K[:, [0, 1], [0, 1]] / self.start_K[:, [0, 1], [0, 1]])
        aspect, principal = logs[:, 1:] - logs[:, :1], (bundle.K - self.start_K)[:, :2, 2]
        camera = [logs[:, :1], bundle.distortion, aspect, principal / bundle.long_side_px[:, None]]
        pose = np.zeros((len(self.centres), POSE))
        pose[:, 3:] = np.nan_to_num(bundle.world_from_cam[:, :3, 3] - self.centres)
        return np.concatenate([np.concatenate(camera, axis=1).ravel(), pose.ravel()])

    def _after_step(self, step: np.ndarray, point_step: np.ndarray) -> Bundle:
        step = np.where(self.free, step, 0.0)  # rounding would part the focal lengths of square pixels
        camera, pose = step[: self.first_pose].reshape(-1, CAMERA), step[self.first_pose :].reshape(-1, POSE)
        K = self.bundle.K.copy()
        # not exp: a longer focal length with a deeper scene, ambiguous without rotations, is then one linear step
        K[:, :2, :2] *= (1 + np.clip(camera[:, 0], -0.6, 1.5))[:, None, None]
        K[:, 1, 1] *= np.exp(np.clip(camera[:, ASPECT], -0.5, 0.5))
        K[:, :2, 2] += camera[:, PRINCIPAL:] * self.bundle.long_side_px[:, None]
        poses = self.bundle.world_from_cam.copy()
        poses[:, :3, :3] = rotation_from_rotvec(pose[:, :3]) @ poses[:, :3, :3]
        poses[:, :3, 3] += pose[:, 3:]
        return replace(
            self.bundle,
            K=K,
            distortion=self.bundle.distortion + camera[:, 1:ASPECT],
            world_from_cam=poses,
            points_world=self.bundle.points_world + point_step,
        )

    def _with_refined_points(self, after: Bundle) -> Bundle:
        """The bundle after a step, where each point goes on alone to fit the moved cameras, from where it was before or
        after, whichever is better ("inner iterations": Triggs et al., section 6).

        Points with hardly any parallax would else be behind a camera after steps that are good ones for the cameras.
        """
        points = self.bundle.points_world
        costs = self._point_costs(replace(after, points_world=points))
        moved = after.points_world
        for _ in range(POINT_STEPS):
            moved_costs = self._point_costs(replace(after, points_world=moved))
            better = moved_costs < costs
            points, costs = np.where(better[:, None], moved, points), np.minimum(costs, moved_costs)
            residuals, weight, by_point = self._by_point(replace(after, points_world=points))[:3]
            root = np.where(np.isfinite(residuals).all(-1), np.sqrt(weight), 0.0)[:, None]
            columns = np.nan_to_num(np.concatenate([by_point, residuals[:, :, None]], axis=-1)) * root[:, None]
            square = np.einsum("nki,nkj->nij", columns[..., :3], columns).reshape(-1, 12).T
            normal = np.stack([np.bincount(after.point, c, len(points)) for c in square], -1).reshape(-1, 3, 4)
            floor = 1e-6 * np.einsum("pii->p", normal[:, :, :3])[:, None, None] + 1e-300
            step = np.linalg.solve(normal[:, :, :3] + floor * np.eye(3), normal[:, :, 3:])
            moved = points - step[:, :, 0]
        return replace(after, points_world=points)

    def _point_costs(self, bundle: Bundle) -> np.ndarray:
        """(P,) the sum of each point's robust errors, of those in front of their cameras; a large number else."""
        square = (bundle.residuals_px() ** 2).sum(-1)
        errors = np.log1p(np.where(np.isfinite(square), square, 1e300) / self.kernel_px**2)
        return np.bincount(bundle.point, errors, len(bundle.points_world))

    def _by_point(self, bundle: Bundle) -> tuple[np.ndarray, ...]:
        """The residuals (N, 2), their weights (N,), their derivatives by the points (N, 2, 3), and, for those by
        the cameras: the points on their planes (N, 2), pixels (N, 2), and F (N, 2, 2)."""
        pixels, points_cam, plane = _project(bundle)
        residuals = pixels - bundle.pixels
        camera = bundle.camera_ids[bundle.view]
        with np.errstate(all="ignore"):
            weight = self.scale / (1 + (residuals**2).sum(-1) / self.kernel_px**2)
            x, y = plane.T
            fisheye = bundle.fisheye[camera]
            F = bundle.K[camera][:, :2, :2]
            by_plane = _distortion_by_plane(plane, bundle.distortion[camera], fisheye)
            zero = np.zeros_like(x)
            z = points_cam[:, 2]
            plane_by_point = np.stack([np.stack([1 / z, zero, -x / z], -1), np.stack([zero, 1 / z, -y / z], -1)], -2)
            if fisheye.any():
                plane_by_point[fisheye] = _angles_by_point(points_cam[fisheye])
            rotation = np.swapaxes(bundle.world_from_cam[bundle.view][:, :3, :3], 1, 2)  # cam from world
            return residuals, weight, F @ by_plane @ plane_by_point @ rotation, plane, pixels, F

    def _normal_equations(self, align: bool = False, bent: bool = False) -> NormalEquations:
        """align: hold the world, which priors of the centres leave more or less open. bent: with the second derivative
        of the loss as well (Triggs et al., section 4.3), with which the steps converge in half of their number."""
        bundle = self.bundle
        residuals, weight, by_point, plane, pixels, F = self._by_point(bundle)
        camera = bundle.camera_ids[bundle.view]
        fisheye = bundle.fisheye[camera]
        offsets = bundle.points_world[bundle.point] - bundle.world_from_cam[bundle.view][:, :3, 3]
        by_pose = np.concatenate([by_point @ cross_matrix(offsets), -by_point], axis=-1)
        by_focal = pixels - bundle.K[camera][:, :2, 2]
        by_terms = F @ _distortion_by_terms(plane, fisheye)
        by_aspect = by_focal * (0.0, 1.0)
        by_principal = np.eye(2) * bundle.long_side_px[camera][:, None, None]
        by_camera = np.concatenate([by_focal[:, :, None], by_terms, by_aspect[:, :, None], by_principal], axis=-1)
        root = np.sqrt(weight)
        if bent:
            square = (residuals**2).sum(-1)
            share = square / self.kernel_px**2
            bend = np.sqrt(np.maximum((1 - share) / (1 + share), LEAST_BEND))  # along the residual, in the errors' unit
            along = residuals * ((1 - bend) / np.maximum(square, 1e-300))[:, None]
            by_point, by_camera, by_pose = (
                by - along[:, :, None] * np.einsum("nk,nkp->np", residuals, by)[:, None]
                for by in (by_point, by_camera, by_pose)
            )
            residuals = residuals / bend[:, None]
        derivatives = Derivatives(
            residuals * root[:, None],
            np.concatenate([by_camera, by_pose], axis=-1) * root[:, None, None],
            by_point * root[:, None, None],
            root,
            bundle.camera_ids,
            bundle.view,
            bundle.point,
        )
        # a similarity of the world changes nothing, unless something fixes the poses
        gauge_centres = bundle.world_from_cam[:, :3, 3] if (self.has_gauge or align) else None
        prior_gradient = self.prior_weight * self._prior_residuals(bundle)
        return NormalEquations(derivatives, self.free, self.prior_weight, prior_gradient, self.cameras, gauge_centres)


# The change of triangulated points with errors of the cameras' calibration.


def point_shifts(
    points_world: np.ndarray,
    tracks: np.ndarray,
    pixels: np.ndarray,
    K: np.ndarray,
    radial: np.ndarray,
    cam_from_world: np.ndarray,
    modes: np.ndarray,
) -> np.ndarray:
    """(P, M, 3) the shift of each point with each of the `modes` (V, M, 10) of its V views, as in `AdjustedBundle`.

    `tracks` (Q, 2): point and view of each observation at `pixels` (Q, 2) of the view's pinhole camera `K` (V, 3, 3),
    whose photo has a `radial` term (V,); `cam_from_world` (V, 4, 4). The pixels of the photos are kept, so that the
    rays change with the cameras; the point is triangulated again from them, to first order.
    """
    count, mode_count = len(points_world), modes.shape[1]
    if not count or not mode_count:
        return np.zeros((count, mode_count, 3))
    normal, right = np.zeros((count, 3, 3)), np.zeros((count, 3, mode_count))
    for view in np.unique(tracks[:, 1]):
        own = tracks[:, 1] == view
        point, mode = tracks[own, 0], modes[view]
        jacobian = pose_jacobian(points_world[point], K[view], cam_from_world[view])  # (q, 2, 6)
        plane = (pixels[own] - K[view][:2, 2]) @ np.linalg.inv(K[view][:2, :2]).T
        square = (plane**2).sum(-1)
        slope = 1 + 3 * radial[view] * square
        # along the ray from the principal point, and with the principal point
        stretch = -(np.outer(1 + radial[view] * square, mode[:, 0]) + np.outer(square, mode[:, 1])) / slope[:, None]
        from_principal = (pixels[own] - K[view][:2, 2])[:, :, None]
        pixel_shift = stretch[:, None] * from_principal - mode[:, 2:4].T[None]  # (q, 2, M)
        residual = jacobian @ mode[:, 4:].T - pixel_shift
        by_point = -jacobian[:, :, 3:]
        np.add.at(normal, point, np.einsum("qki,qkj->qij", by_point, by_point))
        np.add.at(right, point, np.einsum("qki,qkm->qim", by_point, residual))
    floor = 1e-12 * np.einsum("pii->p", normal)[:, None, None] * np.eye(3)
    return -np.swapaxes(np.linalg.solve(normal + floor + 1e-300 * np.eye(3), right), 1, 2)
