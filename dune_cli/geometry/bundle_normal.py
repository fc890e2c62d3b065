"""The normal equations of bundle adjustment, the points eliminated (B. Triggs et al., 2000, section 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dune_cli.geometry.epipolar import cross_matrix

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
