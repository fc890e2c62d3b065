"""The normal equations of bundle adjustment, the points eliminated (B. Triggs et al., 2000, section 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dune_cli.geometry.absolute_pose import pose_jacobian
from dune_cli.geometry.poses import cross_matrix, rotation_from_rotvec

LENS, POSE = 2, 6  # parameters: log of the focal factor and radial term; rotation vector and centre
DENSE_UP_TO = 3000  # camera parameters


@dataclass(frozen=True)
class Derivatives:
    """Of N observations, all times the `root` (N,) of their weights: `residuals` (N, 2), and their derivatives
    `by_camera` (N, 2, 8), the lens's parameters first, and `by_point` (N, 2, 3); whose `lens`, `view`, `point` (N,)."""

    residuals: np.ndarray
    by_camera: np.ndarray
    by_point: np.ndarray
    root: np.ndarray
    lens: np.ndarray
    view: np.ndarray
    point: np.ndarray


class NormalEquations:
    """`free` (parameters,): the lenses' first, then the views'; the others stay. `prior_weight` and `pull`
    (parameters,): inverse variances and gradient of the Gaussian priors. `gauge_centres` (V, 3) of the cameras where a
    similarity of the world changes nothing, else None."""

    def __init__(
        self,
        seen: Derivatives,
        free: np.ndarray,
        prior_weight: np.ndarray,
        pull: np.ndarray,
        lenses: int,
        gauge_centres: np.ndarray | None,
    ) -> None:
        from scipy import sparse

        self.seen, self.free, self.prior_weight, self.centres = seen, free, prior_weight, gauge_centres
        self.total, self.first_pose = len(free), LENS * lenses
        count = self.rows = int(seen.point.max()) + 1
        columns = np.concatenate(
            [
                LENS * seen.lens[:, None] + np.arange(LENS),
                self.first_pose + POSE * seen.view[:, None] + np.arange(POSE),
            ],
            axis=1,
        )  # (N, 8)
        by_camera = seen.by_camera * free[columns][:, None]
        place = np.arange(2 * len(columns)).reshape(-1, 2)
        self.J = sparse.csr_array(
            (
                by_camera.ravel(),
                (np.repeat(place.ravel(), LENS + POSE), np.repeat(columns[:, None], 2, axis=1).ravel()),
            ),
            shape=(2 * len(columns), self.total),
        )
        three = 3 * seen.point[:, None] + np.arange(3)
        self.B = sparse.csr_array(
            (seen.by_point.ravel(), (np.repeat(place.ravel(), 3), np.repeat(three[:, None], 2, axis=1).ravel())),
            shape=(2 * len(columns), 3 * count),
        )
        self.V = np.zeros((count, 3, 3))
        np.add.at(self.V, seen.point, np.einsum("nik,nil->nkl", seen.by_point, seen.by_point))
        self.W = (self.J.T @ self.B).tocsr()
        self.U = (self.J.T @ self.J).tocsr()
        self.gradient = self.J.T @ seen.residuals.ravel() + pull
        self.point_gradient = (self.B.T @ seen.residuals.ravel()).reshape(-1, 3)

    def _eliminated(self, damping: float) -> tuple[Any, np.ndarray]:
        """The Schur complement (parameters, parameters), the gauge held, and the inverses (P, 3, 3) of the points'."""
        from scipy import sparse

        diagonal = np.einsum("pii->pi", self.V)
        V = self.V.copy()
        floor = 1e-12 * max(float(diagonal.max(initial=0)), 1e-300)
        np.einsum("pii->pi", V)[:] = diagonal * (1 + damping) + floor
        inverses = np.linalg.inv(V)
        blocks = sparse.bsr_array(
            (inverses, np.arange(self.rows), np.arange(self.rows + 1)), shape=(3 * self.rows,) * 2
        ).tocsr()
        S = (self.U - self.W @ blocks @ self.W.T).tocsr()
        diagonal = self.U.diagonal() * damping + self.prior_weight + np.where(self.free, 0.0, 1.0)
        S = S + sparse.diags_array(diagonal)
        return S, inverses

    def _solver(self, damping: float) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
        from scipy import linalg, sparse
        from scipy.sparse.linalg import splu

        S, inverses = self._eliminated(damping)
        gauge = self._gauge()
        level = float(np.median(S.diagonal()[self.free]))
        if self.total <= DENSE_UP_TO:
            dense = S.toarray() + level * gauge @ gauge.T
            factors = linalg.cho_factor(0.5 * (dense + dense.T))
            return (lambda right: linalg.cho_solve(factors, right)), inverses
        # bordered: steps that are no similarity of the world
        seven = gauge.shape[1]
        border = sparse.csr_array(gauge * level)
        whole = sparse.block_array([[S, border], [border.T, None]] if seven else [[S]]).tocsc()
        factors = splu(whole)

        def solve(right: np.ndarray) -> np.ndarray:
            padded = np.concatenate([right, np.zeros((seven, *right.shape[1:]))])
            return factors.solve(padded)[: self.total]

        return solve, inverses

    def _gauge(self) -> np.ndarray:
        """(parameters, 7 or fewer) orthonormal: what a similarity of the world does to the poses."""
        if self.centres is None:
            return np.zeros((self.total, 0))
        centres = self.centres
        views = len(centres)
        basis = np.zeros((views, POSE, 7))
        basis[:, :3, :3] = np.eye(3)
        basis[:, 3:, :3] = -cross_matrix(centres)  # omega x centre
        basis[:, 3:, 3:6] = np.eye(3)
        basis[:, 3:, 6] = centres
        whole = np.zeros((self.total, 7))
        whole[self.first_pose :] = basis.reshape(-1, 7)
        directions, sizes, _ = np.linalg.svd(whole, full_matrices=False)
        return directions[:, sizes > 1e-9 * sizes[0]]  # cameras at one place have no scale

    def step(self, damping: float) -> tuple[np.ndarray, np.ndarray]:
        """Of the cameras (parameters,) and of the points (P, 3)."""
        solve, inverses = self._solver(damping)
        held = np.einsum("pij,pj->pi", inverses, self.point_gradient)
        step = -solve(self.gradient - self.W @ held.ravel())
        shifts = -held - np.einsum("pij,pj->pi", inverses, (self.W.T @ step).reshape(-1, 3))
        return step, shifts

    def covariance_columns(self, columns: np.ndarray) -> np.ndarray:
        """(parameters, len(columns)) of the covariance."""
        solve, _ = self._solver(0.0)
        right = np.zeros((self.total, len(columns)))
        right[columns, np.arange(len(columns))] = 1
        return solve(right)

    def considered(self, principal_sd_px: np.ndarray) -> np.ndarray:
        """(parameters, 2 L) how the solution moves when a lens's principal point is one standard deviation off."""
        solve, inverses = self._solver(0.0)
        lens = self.seen.lens
        shifted = np.zeros((2 * len(lens), 2 * len(principal_sd_px)))
        places = np.arange(len(lens))
        for axis in (0, 1):
            shifted[2 * places + axis, 2 * lens + axis] = self.seen.root * principal_sd_px[lens]
        right = self.J.T @ shifted
        by_points = self.B.T @ shifted
        held = np.einsum("pij,pjc->pic", inverses, by_points.reshape(self.rows, 3, -1)).reshape(3 * self.rows, -1)
        return -solve(right - self.W @ held)


# Bundle adjustment with priors on the lenses, and how well they are determined: poses, points, focal and radial terms.
#
# Ceres, as pycolmap gives it out, takes no prior on a focal length. Without one, motions that do not determine it (a
# camera that moves and never turns, few photos, little parallax: P. Sturm, "Critical motion sequences for monocular
# self-calibration", CVPR 1997) leave it anywhere. float64, numpy and scipy; pixels have their centres at integers.


MAX_STEPS = 200
ENOUGH, MIN_DAMPING = 0.05, 1e-10
MODE = 10  # log of the focal factor, radial term, principal point; rotation vector, centre
CORRELATION = 2.0  # on the error of a match: those of one keypoint in several matches, and of neighbours, are alike
MIN_SIGMA_PX = 0.15
PRINCIPAL_SD = 0.01  # of the long side: how far a principal point is from the middle, which is not looked for
MAX_MODES = 12


@dataclass(frozen=True)
class Priors:
    """Gaussian ones by lens: `log_focal_sd` (L,) of the logarithm of the focal length about the start's (0: fixed),
    `radial_sd` (L,) of the radial term about 0 (0: fixed). `pose_fixed` (V,): views that stay where they are (None:
    none does). `centres` (V, 3), NaN where unknown, with `centre_sd`: where cameras are about (None: nobody knows)."""

    log_focal_sd: np.ndarray
    radial_sd: np.ndarray
    pose_fixed: np.ndarray | None = None
    centres: np.ndarray | None = None
    centre_sd: float = 1.0


@dataclass(frozen=True)
class Bundle:
    """V views, L lenses, P points, N observations. `K` (L, 3, 3), `radial` (L,) (a point at (x, y) on the plane z = 1
    is seen where K puts (x, y) (1 + k (x² + y²))), `long_side_px` (L,), `camera_ids` (V,), `world_from_cam` (V, 4, 4),
    `points_world` (P, 3); observation n: `view` (N,), `point` (N,), `pixels` (N, 2)."""

    K: np.ndarray
    radial: np.ndarray
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
    """The solution, and how sure its lenses are.

    `log_focal_sd` and `radial_sd` (L,): standard deviations, the priors included (0 where fixed). `modes` (M, V, 10):
    independent ways in which lenses may be off by one standard deviation, and what goes with it in every view: its
    lens's log focal, radial term and principal point in pixels, the rotation vector about the world's axes and the
    centre, the cameras laid over each other as well as can be. `sigma_px`: the error of a coordinate.
    """

    bundle: Bundle
    log_focal_sd: np.ndarray
    radial_sd: np.ndarray
    modes: np.ndarray
    sigma_px: float


def adjust_bundle(bundle: Bundle, priors: Priors, start_K: np.ndarray) -> AdjustedBundle | None:
    """Minimises the reprojection errors under a Cauchy loss, weighed against the priors: the focal lengths' about those
    of `start_K` (L, 3, 3). Levenberg-Marquardt on the Schur complement of the points (B. Triggs et al., "Bundle
    adjustment: a modern synthesis", 2000, sections 6 and 9).

    The covariance is the inverse of the normal matrix at the solution; the principal points, which stay where they are,
    enter it with PRINCIPAL_SD (a consider covariance: S. Schmidt, 1966). None where the points do not determine the
    cameras.
    """
    middle, length = _frame_of(bundle.world_from_cam, bundle.points_world)
    if priors.centres is not None:
        centres = (priors.centres - middle) / length
        priors = replace(priors, centres=centres, centre_sd=priors.centre_sd / length)
    problem = _Problem(_moved(bundle, middle, 1 / length), priors, start_K)
    try:
        problem.solve()
        sds, modes = problem.uncertainty()
    except np.linalg.LinAlgError:
        return None
    modes[:, :, 7:] *= length
    adjusted = _moved(problem.bundle, -middle / length, length)
    return AdjustedBundle(adjusted, sds[:, 0], sds[:, 1], modes, problem.sigma_px)


def _frame_of(world_from_cam: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, float]:
    """The cameras' middle and a length: numbers near 1 for the solver."""
    centres = world_from_cam[:, :3, 3]
    middle = centres.mean(axis=0)
    length = float(np.sqrt(((centres - middle) ** 2).sum(-1).mean()))
    far = float(np.median(np.linalg.norm(points - middle, axis=1))) if len(points) else 1.0
    return middle, max(length, 1e-6 * far, 1e-300)


def _moved(bundle: Bundle, middle: np.ndarray, factor: float) -> Bundle:
    poses = bundle.world_from_cam.copy()
    poses[:, :3, 3] = (poses[:, :3, 3] - middle) * factor
    return replace(bundle, world_from_cam=poses, points_world=(bundle.points_world - middle) * factor)


def _project(bundle: Bundle) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (N, 2), the points in their cameras (N, 3), and on their planes z = 1 (N, 2)."""
    pose, lens = bundle.world_from_cam[bundle.view], bundle.camera_ids[bundle.view]
    local = np.einsum("nji,nj->ni", pose[:, :3, :3], bundle.points_world[bundle.point] - pose[:, :3, 3])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        plane = local[:, :2] / local[:, 2:]
        bent = plane * (1 + bundle.radial[lens] * (plane**2).sum(-1))[:, None]
        K = bundle.K[lens]
        pixels = np.einsum("nij,nj->ni", K[:, :2, :2], bent) + K[:, :2, 2]
    pixels[~(local[:, 2] > 0)] = np.inf
    return pixels, local, plane


class _Problem:
    def __init__(self, bundle: Bundle, priors: Priors, start_K: np.ndarray) -> None:
        self.bundle, self.start_K = bundle, start_K
        views, lenses = len(bundle.world_from_cam), len(bundle.K)
        fixed = np.zeros(views, bool) if priors.pose_fixed is None else priors.pose_fixed
        free = np.repeat(~fixed[:, None], POSE, axis=1)
        self.centres = np.full((views, 3), np.nan) if priors.centres is None else priors.centres
        held = np.isfinite(self.centres).all(-1)
        centre_weight = np.zeros((views, POSE))
        centre_weight[held, 3:] = 1 / priors.centre_sd**2
        sds = np.stack([priors.log_focal_sd, priors.radial_sd], axis=1)
        self.free = np.concatenate([(sds > 0).ravel(), free.ravel()])
        with np.errstate(divide="ignore"):
            self.prior_weight = np.concatenate([np.where(sds > 0, 1 / sds**2, 0).ravel(), centre_weight.ravel()])
        self.first_pose, self.lenses = LENS * lenses, lenses
        self.has_gauge = not fixed.any() and not held.any()
        self.sigma_px, self.kernel_px = MIN_SIGMA_PX, MIN_SIGMA_PX
        self._measure()

    def solve(self) -> None:
        for _ in range(2):  # the second time with the error of a match as the first fit leaves it
            damping, cost = 1e-8, self._cost(self.bundle)
            for _ in range(MAX_STEPS):
                normal = self._normal()
                improved = False
                while damping < 1e8:
                    step, shifts = normal.step(damping)
                    after = self._stepped(step, shifts)
                    new_cost = self._cost(after)
                    if new_cost < cost:
                        improved = True
                        break
                    damping *= 8
                if not improved:
                    break
                gain, cost = cost - new_cost, new_cost
                # the cost is a chi square: a twentieth of it is nothing, unless damping kept the step short
                done = gain < ENOUGH and damping <= MIN_DAMPING
                self.bundle, damping = after, max(damping / 8, MIN_DAMPING)
                if done:
                    break
            self._measure()

    def uncertainty(self) -> tuple[np.ndarray, np.ndarray]:
        """(L, 2) standard deviations and (M, V, 10) modes, in the problem's own unit."""
        normal = self._normal()
        lens_count = LENS * self.lenses
        columns = np.flatnonzero(self.free[:lens_count])
        views = len(self.bundle.world_from_cam)
        if not len(columns):
            return np.zeros((self.lenses, 2)), np.zeros((0, views, MODE))
        answer = normal.covariance_columns(columns)  # (parameters, columns)
        lens_block = answer[columns]
        considered = normal.considered(PRINCIPAL_SD * self.bundle.long_side_px)  # (parameters, 2 L): shifts by one sd
        covariance = 0.5 * (lens_block + lens_block.T)
        values, vectors = np.linalg.eigh(covariance)
        values = np.maximum(values, 0)
        # the poses that go with lenses off by a mode: regression on the lens parameters
        inverse = vectors @ np.diag(1 / np.maximum(values, 1e-300)) @ vectors.T
        found = [answer @ inverse @ (np.sqrt(value) * vector) for value, vector in zip(values, vectors.T)]
        whole = np.concatenate([np.array(found), considered.T])
        total = (whole[:, :lens_count] ** 2).sum(0)
        principal = np.zeros((len(whole), self.lenses, 2))
        principal[len(found) + np.arange(2 * self.lenses)] = np.eye(2 * self.lenses).reshape(-1, self.lenses, 2)
        principal *= (PRINCIPAL_SD * self.bundle.long_side_px)[:, None]
        lens = np.concatenate([whole[:, :lens_count].reshape(-1, self.lenses, LENS), principal], axis=-1)
        modes = np.concatenate(
            [lens[:, self.bundle.camera_ids], whole[:, lens_count:].reshape(-1, views, POSE)], axis=-1
        )
        weight = (whole**2).sum(1)
        return np.sqrt(total).reshape(self.lenses, LENS), modes[np.argsort(-weight, kind="stable")[:MAX_MODES]]

    def _measure(self) -> None:
        """The error of a coordinate: the weighted residuals against the freedom that the parameters leave."""
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
        return float(self.scale * robust.sum() + (self.prior_weight * self._off(bundle) ** 2).sum())

    def _off(self, bundle: Bundle) -> np.ndarray:
        """(parameters,) how far lenses and centres are from their priors."""
        lens = np.stack([np.log(bundle.K[:, 0, 0] / self.start_K[:, 0, 0]), bundle.radial], axis=1)
        pose = np.zeros((len(self.centres), POSE))
        pose[:, 3:] = np.nan_to_num(bundle.world_from_cam[:, :3, 3] - self.centres)
        return np.concatenate([lens.ravel(), pose.ravel()])

    def _stepped(self, step: np.ndarray, shifts: np.ndarray) -> Bundle:
        lens, pose = step[: self.first_pose].reshape(-1, LENS), step[self.first_pose :].reshape(-1, POSE)
        K = self.bundle.K.copy()
        # not exp: a longer lens that sees a deeper scene, which motions without turns cannot tell apart, is one step
        K[:, :2, :2] *= (1 + np.clip(lens[:, 0], -0.6, 1.5))[:, None, None]
        poses = self.bundle.world_from_cam.copy()
        poses[:, :3, :3] = rotation_from_rotvec(pose[:, :3]) @ poses[:, :3, :3]
        poses[:, :3, 3] += pose[:, 3:]
        return replace(
            self.bundle,
            K=K,
            radial=self.bundle.radial + lens[:, 1],
            world_from_cam=poses,
            points_world=self.bundle.points_world + shifts,
        )

    def _normal(self) -> NormalEquations:
        bundle = self.bundle
        pixels, local, plane = _project(bundle)
        residuals = pixels - bundle.pixels
        lens = bundle.camera_ids[bundle.view]
        weight = self.scale / (1 + (residuals**2).sum(-1) / self.kernel_px**2)
        x, y = plane.T
        k, square = bundle.radial[lens], (plane**2).sum(-1)
        F = bundle.K[lens][:, :2, :2]
        bend = np.stack(
            [
                np.stack([1 + k * (square + 2 * x * x), 2 * k * x * y], -1),
                np.stack([2 * k * x * y, 1 + k * (square + 2 * y * y)], -1),
            ],
            -2,
        )
        zero = np.zeros_like(x)
        z = local[:, 2]
        by_local = np.stack([np.stack([1 / z, zero, -x / z], -1), np.stack([zero, 1 / z, -y / z], -1)], -2)
        rotation = np.swapaxes(bundle.world_from_cam[bundle.view][:, :3, :3], 1, 2)  # cam from world
        by_point = F @ bend @ by_local @ rotation
        offsets = bundle.points_world[bundle.point] - bundle.world_from_cam[bundle.view][:, :3, 3]
        by_pose = np.concatenate([by_point @ cross_matrix(offsets), -by_point], axis=-1)
        by_focal = pixels - bundle.K[lens][:, :2, 2]
        by_radial = np.einsum("nij,nj->ni", F, plane * square[:, None])
        by_lens = np.stack([by_focal, by_radial], axis=-1)
        root = np.sqrt(weight)
        seen = Derivatives(
            residuals * root[:, None],
            np.concatenate([by_lens, by_pose], axis=-1) * root[:, None, None],
            by_point * root[:, None, None],
            root,
            lens,
            bundle.view,
            bundle.point,
        )
        # what a similarity of the world leaves alone, unless something holds the poses
        gauge_centres = bundle.world_from_cam[:, :3, 3] if self.has_gauge else None
        pull = self.prior_weight * self._off(bundle)
        return NormalEquations(seen, self.free, self.prior_weight, pull, self.lenses, gauge_centres)


# Where points go when the cameras that they were triangulated from are not quite what they were taken to be.


def point_shifts(
    points_world: np.ndarray,
    tracks: np.ndarray,
    pixels: np.ndarray,
    K: np.ndarray,
    radial: np.ndarray,
    cam_from_world: np.ndarray,
    modes: np.ndarray,
) -> np.ndarray:
    """(P, M, 3) by how much each point moves with each of the `modes` (V, M, 10) of its V views, as in `Adjusted`.

    `tracks` (Q, 2) point and view of each observation at `pixels` (Q, 2) of the view's pinhole camera `K` (V, 3, 3),
    whose photo has a `radial` term (V,); `cam_from_world` (V, 4, 4). A photo's pixels stay where they are, so that its
    rays turn with its lens; the point goes where the rays then pass nearest, to first order.
    """
    count, amount = len(points_world), modes.shape[1]
    if not count or not amount:
        return np.zeros((count, amount, 3))
    square, side = np.zeros((count, 3, 3)), np.zeros((count, 3, amount))
    for view in np.unique(tracks[:, 1]):
        own = tracks[:, 1] == view
        point, mode = tracks[own, 0], modes[view]
        jacobian = pose_jacobian(points_world[point], K[view], cam_from_world[view])  # (q, 2, 6)
        plane = (pixels[own] - K[view][:2, 2]) @ np.linalg.inv(K[view][:2, :2]).T
        far = (plane**2).sum(-1)
        bend = 1 + 3 * radial[view] * far
        # along the ray from the principal point, and with the principal point
        stretch = -(np.outer(1 + radial[view] * far, mode[:, 0]) + np.outer(far, mode[:, 1])) / bend[:, None]
        moved = stretch[:, None] * (pixels[own] - K[view][:2, 2])[:, :, None] - mode[:, 2:4].T[None]  # (q, 2, M)
        residual = jacobian @ mode[:, 4:].T - moved
        by_point = -jacobian[:, :, 3:]
        np.add.at(square, point, np.einsum("qki,qkj->qij", by_point, by_point))
        np.add.at(side, point, np.einsum("qki,qkm->qim", by_point, residual))
    floor = 1e-12 * np.einsum("pii->p", square)[:, None, None] * np.eye(3)
    return -np.swapaxes(np.linalg.solve(square + floor + 1e-300 * np.eye(3), side), 1, 2)
