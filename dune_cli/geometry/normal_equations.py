"""The normal equations of a bundle adjustment, with the points eliminated (B. Triggs et al., "Bundle adjustment: a
modern synthesis", 2000, section 6). float64.

Parameters: CAMERA of each camera (log of the focal factor, distortion, log of the aspect, principal point as a share of
the long side), then POSE of each view (rotation vector, centre).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dune_cli.geometry.poses import cross_matrix

TERMS = 4  # of a distortion: k1, k2, p1, p2 of OPENCV, or k1 to k4 of OPENCV_FISHEYE
ASPECT, PRINCIPAL = 1 + TERMS, 2 + TERMS  # where these parameters of a camera are, the latter two numbers
CAMERA, POSE = PRINCIPAL + 2, 6
DENSE_UP_TO = 3000  # parameters of cameras and poses: above, the normal equations are solved as sparse ones


@dataclass(frozen=True)
class Derivatives:
    """Of N observations, all times the `root` (N,) of their weights: `residuals` (N, 2), and their derivatives
    `by_parameters` (N, 2, 14), the camera's first, then the pose's, and `by_point` (N, 2, 3). `camera_ids` (V,) of the
    views; the `view` and `point` (N,) of the observations."""

    residuals: np.ndarray
    by_parameters: np.ndarray
    by_point: np.ndarray
    root: np.ndarray
    camera_ids: np.ndarray
    view: np.ndarray
    point: np.ndarray


class NormalEquations:
    """`free` (parameters,): those that are estimated. `prior_weight` and `prior_gradient` (parameters,): inverse
    variances and gradient of the priors. `gauge_centres` (V, 3): the views' centres where a similarity of the world
    changes nothing, else None.

    The block of points and parameters is kept as two sparse matrices of blocks, one a point and camera (3 x 8) and one
    a point and view (3 x 6).
    """

    def __init__(
        self,
        derivatives: Derivatives,
        free: np.ndarray,
        prior_weight: np.ndarray,
        prior_gradient: np.ndarray,
        cameras: int,
        gauge_centres: np.ndarray | None,
    ) -> None:
        from scipy import sparse

        self.free, self.prior_weight, self.centres = free, prior_weight, gauge_centres
        self.total, self.first_pose = len(free), CAMERA * cameras
        self.camera_ids, views = derivatives.camera_ids, len(derivatives.camera_ids)
        self.points = int(derivatives.point.max()) + 1
        is_free = np.concatenate(
            [free[: self.first_pose].reshape(-1, CAMERA)[self.camera_ids], free[self.first_pose :].reshape(-1, POSE)], 1
        )  # (V, 14)
        self.by_parameters = derivatives.by_parameters * is_free[derivatives.view][:, None]
        self.by_point, self.root = derivatives.by_point, derivatives.root
        by_view = np.argsort(derivatives.view, kind="stable")
        self.of_view = np.split(by_view, np.cumsum(np.bincount(derivatives.view, minlength=views))[:-1])
        self.gradient = prior_gradient.copy()
        self.cameras = cameras
        camera_block, view_blocks = np.zeros((cameras, CAMERA, CAMERA)), np.zeros((views, CAMERA + POSE, POSE))
        for view, rows in enumerate(self.of_view):
            own = self.by_parameters[rows].reshape(-1, CAMERA + POSE)
            square, camera = own.T @ own, self.camera_ids[view]
            camera_block[camera] += square[:CAMERA, :CAMERA]
            view_blocks[view] = square[:, CAMERA:]
            self.gradient[self._parameters_of(view)] += own.T @ derivatives.residuals[rows].ravel()
        order = np.argsort(derivatives.point, kind="stable")
        self.point, by_point = derivatives.point[order], self.by_point[order]
        self.camera = self.camera_ids[derivatives.view[order]]
        self.order = order
        self.V = self._summed_by_point(_transposed_product(by_point, by_point))
        residuals = derivatives.residuals[order][:, :, None]
        self.point_gradient = self._summed_by_point(_transposed_product(by_point, residuals))[:, :, 0]
        W = _transposed_product(by_point, self.by_parameters[order])
        blocks = W[:, :, CAMERA:], derivatives.view[order], np.searchsorted(self.point, np.arange(self.points + 1))
        self.W = (
            self._by_point_and_camera(W[:, :, :CAMERA]),
            sparse.bsr_array(blocks, shape=(3 * self.points, POSE * views)),
        )
        self.U = self._own_blocks(camera_block, view_blocks)

    def step(self, damping: float) -> tuple[np.ndarray, np.ndarray, float]:
        """The step of the parameters (parameters,) and of the points (P, 3), and by how much that of the parameters
        alone is to lessen the cost, each point at its best."""
        solve, inverses = self._solver(damping)
        own_step = np.einsum("pij,pj->pi", inverses, self.point_gradient)
        reduced_gradient = self.gradient - self._to_parameters(own_step.ravel())
        step = -solve(reduced_gradient)
        by_parameters = self.W[0] @ step[: self.first_pose] + self.W[1] @ step[self.first_pose :]
        point_step = -own_step - np.einsum("pij,pj->pi", inverses, by_parameters.reshape(-1, 3))
        return step, point_step, float(-reduced_gradient @ step)

    def covariance_columns(self, columns: np.ndarray) -> np.ndarray:
        """(parameters, len(columns)) of the covariance."""
        right = np.zeros((self.total, len(columns)))
        right[columns, np.arange(len(columns))] = 1
        return self.covariance_times(right)

    def covariance_times(self, right: np.ndarray, damping: float = 0.0) -> np.ndarray:
        """The covariance times `right` (parameters, M); `damping` where it is not finite."""
        return self._solver(damping)[0](right)

    def principal_point_sensitivity(self, principal_sd_px: np.ndarray) -> np.ndarray:
        """(parameters, 2 C) the change of the solution with an error of one standard deviation in each coordinate of
        each camera's principal point."""
        solve, inverses = self._solver(0.0)
        right = np.zeros((self.total, len(principal_sd_px), 2))
        for view, rows in enumerate(self.of_view):
            moved = np.einsum("nka,n->ak", self.by_parameters[rows], self.root[rows])
            right[self._parameters_of(view), self.camera_ids[view]] += moved
        by_points = self._by_point_and_camera(
            np.swapaxes(self.by_point, 1, 2)[self.order] * self.root[self.order, None, None]
        )
        own_steps = _block_diagonal(inverses) @ by_points
        through_points = np.concatenate([(W.T @ own_steps).toarray() for W in self.W])
        return -solve((right.reshape(self.total, -1) - through_points) * np.repeat(principal_sd_px, 2))

    def _parameters_of(self, view: int) -> np.ndarray:
        """(14,) the indices of the parameters of a view's camera and pose."""
        pose = self.first_pose + POSE * view + np.arange(POSE)
        return np.concatenate([CAMERA * self.camera_ids[view] + np.arange(CAMERA), pose])

    def _summed_by_point(self, blocks: np.ndarray) -> np.ndarray:
        """(P, ...) the sums of blocks (N, ...) that are in the order of the points."""
        summed = np.zeros((self.points, *blocks.shape[1:]))
        first = np.flatnonzero(np.diff(self.point, prepend=-1))
        summed[self.point[first]] = np.add.reduceat(blocks, first)
        return summed

    def _by_point_and_camera(self, blocks: np.ndarray) -> Any:
        """The sparse matrix of blocks (N, 3, C), in the order of the points, of their points and cameras."""
        from scipy import sparse

        pairs, row = np.unique(self.point * self.cameras + self.camera, return_inverse=True)
        point, camera = np.divmod(pairs, self.cameras)
        summed = np.stack(
            [np.bincount(row, column, len(pairs)) for column in blocks.reshape(len(blocks), -1).T], axis=-1
        ).reshape(-1, *blocks.shape[1:])
        starts = np.searchsorted(point, np.arange(self.points + 1))
        shape = 3 * self.points, blocks.shape[2] * self.cameras
        return sparse.bsr_array((summed, camera, starts), shape=shape)

    def _own_blocks(self, camera_block: np.ndarray, view_blocks: np.ndarray) -> tuple[Any, Any, Any]:
        """The blocks of the parameters: cameras with cameras, poses with cameras, poses with poses."""
        from scipy import sparse

        starts = np.arange(len(view_blocks) + 1)
        across = np.swapaxes(view_blocks[:, :CAMERA], 1, 2), self.camera_ids, starts
        shape = POSE * len(view_blocks), self.first_pose
        return (
            _block_diagonal(camera_block),
            sparse.bsr_array(across, shape=shape),
            _block_diagonal(view_blocks[:, CAMERA:]),
        )

    def _to_parameters(self, by_points: np.ndarray) -> np.ndarray:
        return np.concatenate([W.T @ by_points for W in self.W])

    def _solver(self, damping: float) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
        """A solver of the reduced system, and the inverses (P, 3, 3) of the points' blocks."""
        from scipy import linalg, sparse
        from scipy.sparse.linalg import splu

        S, inverses = self._eliminate_points(damping)
        gauge = self._gauge()
        level = float(np.median(S.diagonal()[self.free]))
        if isinstance(S, np.ndarray):
            S += level * gauge @ gauge.T
            factors = linalg.cho_factor(0.5 * (S + S.T))
            return (lambda right: linalg.cho_solve(factors, right)), inverses
        # bordered: steps that are no similarity of the world
        constraints = gauge.shape[1]
        border = sparse.csr_array(gauge * level)
        whole = sparse.block_array([[S, border], [border.T, None]] if constraints else [[S]]).tocsc()
        factors = splu(whole)

        def solve(right: np.ndarray) -> np.ndarray:
            padded = np.concatenate([right, np.zeros((constraints, *right.shape[1:]))])
            return factors.solve(padded)[: self.total]

        return solve, inverses

    def _eliminate_points(self, damping: float) -> tuple[Any, np.ndarray]:
        """The Schur complement (parameters, parameters), and the inverses (P, 3, 3) of the points' blocks."""
        from scipy import sparse

        diagonal = np.einsum("pii->pi", self.V)
        V = self.V.copy()
        floor = 1e-12 * max(float(diagonal.max(initial=0)), 1e-300)
        np.einsum("pii->pi", V)[:] = diagonal * (1 + damping) + floor
        inverses = np.linalg.inv(V)
        W_camera, W_pose = self.W
        in_camera, across, in_pose = self.U
        blocks = _block_diagonal(inverses)
        Y_camera, pose_from_point = blocks @ W_camera, W_pose.T
        across = across - pose_from_point @ Y_camera
        in_pose = in_pose - pose_from_point @ (blocks @ W_pose)
        parts = [[in_camera - W_camera.T @ Y_camera, across.T], [across, in_pose]]
        own = np.concatenate([self.U[0].diagonal(), self.U[2].diagonal()])
        added = own * damping + self.prior_weight + np.where(self.free, 0.0, 1.0)
        if self.total <= DENSE_UP_TO:
            return np.block([[part.toarray() for part in row] for row in parts]) + np.diag(added), inverses
        return sparse.block_array(parts).tocsr() + sparse.diags_array(added), inverses

    def _gauge(self) -> np.ndarray:
        """(parameters, 7 or fewer) orthonormal: the changes of the poses by similarities of the world."""
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


def _transposed_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(N, R, C): `left` (N, 2, R) transposed times `right` (N, 2, C)."""
    return left[:, 0, :, None] * right[:, 0, None] + left[:, 1, :, None] * right[:, 1, None]


def _block_diagonal(blocks: np.ndarray) -> Any:
    """The sparse matrix of blocks (N, R, R) on its diagonal."""
    from scipy import sparse

    return sparse.bsr_array((blocks, np.arange(len(blocks)), np.arange(len(blocks) + 1)))
