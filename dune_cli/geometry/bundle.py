"""Bundle adjustment with priors on the lenses, and how well they are determined: poses, points, focal and radial terms.

Ceres, as pycolmap gives it out, takes no prior on a focal length. Without one, motions that do not determine it (a
camera that moves and never turns, few photos, little parallax: P. Sturm, "Critical motion sequences for monocular
self-calibration", CVPR 1997) leave it anywhere. float64, numpy and scipy; pixels have their centres at integers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dune_cli.geometry.bundle_normal import LENS, POSE, Derivatives, NormalEquations
from dune_cli.geometry.epipolar import cross_matrix
from dune_cli.geometry.poses import rotation_from_rotvec

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
    is seen where K puts (x, y) (1 + k (x² + y²))), `long_side_px` (L,), `lens_of` (V,), `world_from_cam` (V, 4, 4),
    `points_world` (P, 3); observation n: `view` (N,), `point` (N,), `pixels` (N, 2)."""

    K: np.ndarray
    radial: np.ndarray
    long_side_px: np.ndarray
    lens_of: np.ndarray
    world_from_cam: np.ndarray
    points_world: np.ndarray
    view: np.ndarray
    point: np.ndarray
    pixels: np.ndarray

    def residuals_px(self) -> np.ndarray:
        """(N, 2); inf behind the camera."""
        return _project(self)[0] - self.pixels


@dataclass(frozen=True)
class Adjusted:
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


def adjust(bundle: Bundle, priors: Priors, start_K: np.ndarray) -> Adjusted | None:
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
    return Adjusted(adjusted, sds[:, 0], sds[:, 1], modes, problem.sigma_px)


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
    pose, lens = bundle.world_from_cam[bundle.view], bundle.lens_of[bundle.view]
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
        modes = np.concatenate([lens[:, self.bundle.lens_of], whole[:, lens_count:].reshape(-1, views, POSE)], axis=-1)
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
        lens = bundle.lens_of[bundle.view]
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
