"""The robust least squares of `global_alignment`: poses, focals, depths and pair scales together, in torch.

Residual of anchor a of view v in pair e = (i, j): |world_from_cam_v(depth K^-1 pixel) - world_from_cam_i(scale_e
point)| over the anchor's distance at the start; Geman-McClure, weighted by confidence; LBFGS in float64. A pair's frame
is its first camera, which DUSt3R leaves free (section 3.4): tied, the same iterations came five times nearer the truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

PATIENCE = 1e-10  # LBFGS stops when the loss or a step changes by less


@dataclass(frozen=True)
class Problem:
    """A start: V views, E pairs, A anchors; arrays as in `PairPoints`, cameras and `depth` (V, A) to begin with.

    `K_fixed`, `pose_fixed`, `pose_prior` (V,) bool. `scale_fixed`: the known poses fix the world's scale; else the
    geometric mean of the pairs' scales is kept (DUSt3R, section 3.4)."""

    pairs: np.ndarray
    points: np.ndarray
    confidence: np.ndarray
    anchors: np.ndarray
    K: np.ndarray
    K_fixed: np.ndarray
    world_from_cam: np.ndarray
    pose_fixed: np.ndarray
    pose_prior: np.ndarray
    prior_share: float
    depth: np.ndarray
    scale_fixed: bool


@dataclass(frozen=True)
class Solution:
    """`world_from_cam` (V, 4, 4), `K` (V, 3, 3), `depth` (V, A), `pair_scale`, `pair_inliers` (E,), median `error`."""

    world_from_cam: np.ndarray
    K: np.ndarray
    depth: np.ndarray
    pair_scale: np.ndarray
    pair_inliers: np.ndarray
    error: float


def refine(problem: Problem, tolerance: float, coarse: float, iterations: int) -> Solution:
    """Stages with a kernel of `coarse`, then tolerance, then three times the noise that is left."""
    state = _State(problem, tolerance)
    kernel = coarse
    for stage in range(4):
        state.solve(kernel, iterations)
        residuals = state.residuals().detach()
        near = residuals[(residuals < tolerance) & (state.weights > 0)]
        noise = 1.5 * float(near.median()) if near.numel() else tolerance
        kernel = max(tolerance, kernel / 3) if stage == 0 else min(tolerance, max(3 * noise, 1e-4))
    return state.solution(tolerance)


class _State:
    """The parameters: small changes of the start, in units of about 1."""

    def __init__(self, problem: Problem, tolerance: float) -> None:
        self.problem = problem
        # anchors no pair sees must not set the unit
        used = np.zeros(problem.depth.shape, bool)
        for side in (0, 1):
            np.logical_or.at(used, problem.pairs[:, side], problem.confidence[:, side] > 0)
        self.unit = float(np.median(problem.depth[used]))
        tensor = torch.from_numpy
        pose = tensor(np.ascontiguousarray(problem.world_from_cam))
        self.rotation, self.centre = pose[:, :3, :3], pose[:, :3, 3] / self.unit
        self.log_depth = tensor(np.log(problem.depth / self.unit))
        self.pairs, self.points = tensor(problem.pairs), tensor(problem.points)
        self.K = tensor(problem.K)
        self.pixels = tensor(problem.anchors)
        self.weights = tensor(problem.confidence / max(problem.confidence.sum(), 1e-300))
        self.view_weights = torch.zeros(len(pose), dtype=torch.float64)
        self.view_weights.index_put_((self.pairs.reshape(-1),), self.weights.sum(-1).reshape(-1), accumulate=True)
        with torch.no_grad():
            start = self._place(torch.zeros_like(self.centre), self.centre, self.log_depth, torch.zeros(len(pose)))
        self.sizes = (start - self.centre[:, None]).norm(dim=-1).clamp(min=1e-6)[self.pairs]
        told = self._told(torch.zeros_like(self.centre), self.centre, torch.zeros(len(self.pairs), dtype=torch.float64))
        origin = self.centre[self.pairs[:, 0], None, None]
        ratio = (start[self.pairs] - origin).norm(dim=-1) / (told - origin).norm(dim=-1).clamp(min=1e-12)
        ratio = torch.where(self.weights > 0, ratio, torch.nan)[:, 0]
        log_scale = ratio.nanmedian(dim=1).values.log()
        views = len(pose)
        self.values = {
            "turn": torch.zeros(views, 3, dtype=torch.float64),
            "shift": torch.zeros(views, 3, dtype=torch.float64),
            "log_focal": torch.zeros(views, dtype=torch.float64),
            "log_depth": torch.zeros_like(self.log_depth),
            "pair_log_scale": log_scale,
        }
        self.mean_log_scale = self.values["pair_log_scale"].mean()
        free = torch.from_numpy(~problem.pose_fixed)[:, None].double()
        self.masks = {"turn": free, "shift": free, "log_focal": torch.from_numpy(~problem.K_fixed).double()}
        for value in self.values.values():
            value.requires_grad_(True)

    def _of(self, name: str) -> torch.Tensor:
        value = self.values[name]
        if name == "pair_log_scale" and not self.problem.scale_fixed:
            return value - value.mean() + self.mean_log_scale
        return value * self.masks[name] if name in self.masks else value

    def _place(
        self, turn: torch.Tensor, centre: torch.Tensor, log_depth: torch.Tensor, log_focal: torch.Tensor
    ) -> torch.Tensor:
        """(V, A, 3) the anchors in the world."""
        focal = torch.stack([self.K[:, 0, 0], self.K[:, 1, 1]], -1) * log_focal.double().exp()[:, None]
        plane = self.pixels - self.K[:, None, :2, 2]
        y = plane[..., 1] / focal[:, None, 1]
        x = (plane[..., 0] - self.K[:, None, 0, 1] * y) / focal[:, None, 0]
        rays = torch.stack([x, y, torch.ones_like(x)], -1)
        points = rays * log_depth.exp()[..., None]
        return points @ (_exp(turn) @ self.rotation).mT + centre[:, None]

    def _told(self, turn: torch.Tensor, centre: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
        """(E, 2, A, 3) what the pairs tell, in the world."""
        linear = (_exp(turn) @ self.rotation)[self.pairs[:, 0]] * log_scale.exp()[:, None, None]
        return self.points @ linear.mT[:, None] + centre[self.pairs[:, 0], None, None]

    def residuals(self) -> torch.Tensor:
        """(E, 2, A) relative."""
        turn, centre, log_depth = self._of("turn"), self.centre + self._of("shift"), self._of("log_depth")
        placed = self._place(turn, centre, self.log_depth + log_depth, self._of("log_focal"))
        told = self._told(turn, centre, self._of("pair_log_scale"))
        return (((placed[self.pairs] - told) ** 2).sum(-1) + 1e-24).sqrt() / self.sizes

    def _prior(self, kernel: float) -> torch.Tensor:
        """The pull towards poses that are priors: as if a share of the camera's points moved with it."""
        moved = (self._of("turn") ** 2).sum(-1) + (self._of("shift") ** 2).sum(-1)
        strength = self.problem.prior_share * self.view_weights * torch.from_numpy(self.problem.pose_prior).double()
        return (strength * moved).sum() / kernel**2

    def solve(self, kernel: float, iterations: int) -> None:
        optimiser = torch.optim.LBFGS(
            list(self.values.values()),
            max_iter=iterations,
            history_size=30,
            tolerance_grad=PATIENCE,
            tolerance_change=PATIENCE,
            line_search_fn="strong_wolfe",
        )

        def closure() -> torch.Tensor:
            optimiser.zero_grad()
            square = (self.residuals() / kernel) ** 2
            loss = (self.weights * square / (1 + square)).sum()
            if self.problem.pose_prior.any():
                loss = loss + self._prior(kernel)
            loss.backward()
            return loss

        optimiser.step(closure)

    @torch.no_grad()
    def solution(self, tolerance: float) -> Solution:
        poses = self.problem.world_from_cam.copy()
        moved = ~self.problem.pose_fixed
        poses[moved, :3, :3] = (_exp(self._of("turn")) @ self.rotation).numpy()[moved]
        poses[moved, :3, 3] = (self.unit * (self.centre + self._of("shift"))).numpy()[moved]
        K = self.problem.K.copy()
        K[:, (0, 1), (0, 1)] *= self._of("log_focal").exp().numpy()[:, None]
        residuals, weights = self.residuals(), self.weights
        inliers = ((residuals < tolerance) * weights).sum(2) / weights.sum(2).clamp(min=1e-300)
        near = residuals[(residuals < tolerance) & (weights > 0)]
        return Solution(
            world_from_cam=poses,
            K=K,
            depth=self.unit * (self.log_depth + self._of("log_depth")).exp().numpy(),
            pair_scale=self.unit * self._of("pair_log_scale").exp().numpy(),
            pair_inliers=inliers.min(1).values.numpy(),
            error=float(near.median()) if near.numel() else float("inf"),
        )


def _exp(rotvec: torch.Tensor) -> torch.Tensor:
    """(..., 3, 3) rotations of rotation vectors (..., 3), with a gradient at 0 (Rodrigues)."""
    angle = ((rotvec**2).sum(-1) + 1e-30).sqrt()[..., None, None]
    x, y, z = rotvec.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    half = torch.sinc(angle / (2 * torch.pi))
    return torch.eye(3, dtype=rotvec.dtype) + torch.sinc(angle / torch.pi) * skew + 0.5 * half**2 * (skew @ skew)
