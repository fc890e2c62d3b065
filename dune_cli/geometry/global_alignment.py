"""The robust least squares of `global_alignment`: poses, focals, depths and pair scales together, in torch.

Residual of anchor a of view v in pair e = (i, j): |world_from_cam_v(depth K^-1 pixel) - world_from_cam_i(scale_e
point)| over the anchor's distance at the start; Geman-McClure, weighted by confidence; LBFGS in float64. A pair's frame
is its first camera, which DUSt3R leaves free (section 3.4): tied, the same iterations came five times nearer the truth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from dune_cli.geometry import view_graph
from dune_cli.geometry.cameras import K_from_focal, backproject, focal_from_point_map
from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.geometry.sim3 import move_poses, rigid_part, robust_similarity, scale_of, similarity_from_poses

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


# Many pairs' point maps, each in its own first camera's frame and its own scale, to cameras in one world.
#
# S. Wang et al., "DUSt3R: Geometric 3D Vision Made Easy", CVPR 2024, section 3.4: every pair gets a scale, every view
# a pose, a focal length and depths, such that both tell the same points. As in B. Duisterhof et al., "MASt3R-SfM",
# 2024, section 4, on a few anchors of each view instead of all pixels, a pair's frame being its first camera.
# The robust
# kernel, the start (`view_graph`) and the known cameras are our own.


DOUBTED = 0.1  # the weight of pairs that the start does not explain; a long chain's loop may still close by them


@dataclass(frozen=True)
class PairPoints:
    """E pairs of V views, and what each says of both views' anchors.

    `pairs` (E, 2) view numbers, no pair twice; `points` (E, 2, A, 3): the anchors of its first and of its second view,
    both in the first camera's frame; `confidence` (E, 2, A): their weights, 0 for anchors that are not to be used.
    `anchors` (V, A, 2): the anchors' pixels, `sizes` (V, 2): width and height of the photos that these count in.
    Every view must be the first one of some pair.
    """

    pairs: np.ndarray
    points: np.ndarray
    confidence: np.ndarray
    anchors: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True)
class KnownCameras:
    """What is known of V cameras: `K` (V, 3, 3), NaN where it is not; `world_from_cam` (V, 4, 4), NaN where it is not.

    Known intrinsics are kept. Known poses are kept, or with `poses_are_priors` pulled towards with the strength of
    `prior_share` of the camera's points (radians, and shares of the scene's median depth).
    """

    K: np.ndarray
    world_from_cam: np.ndarray
    poses_are_priors: bool = False
    prior_share: float = 0.2

    @classmethod
    def nothing(cls, views: int) -> KnownCameras:
        return cls(np.full((views, 3, 3), np.nan), np.full((views, 4, 4), np.nan))

    @property
    def has_K(self) -> np.ndarray:
        return np.isfinite(self.K).all((1, 2))

    @property
    def has_pose(self) -> np.ndarray:
        return np.isfinite(self.world_from_cam).all((1, 2))


@dataclass(frozen=True)
class AlignConfig:
    """`tolerance`: points agree within this share of their distance. `min_inlier_share` of a pair's weight that must
    agree with another pair's map of the same view before it joins them. `iterations` of LBFGS in each of the stages,
    whose kernels shrink from `coarse` to the noise that is found. `seed` of the trees that are tried."""

    tolerance: float = 0.1
    min_inlier_share: float = 0.3
    coarse: float = 0.3
    iterations: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Alignment:
    """`registered` (V,): the views of the largest group that hangs together; of the others all entries mean nothing.

    `world_from_cam` (V, 4, 4), `K` (V, 3, 3), `depth` (V, A) z of the anchors, `seen` (V, A): those that some pair
    has a weight for. The world is that of the known poses, else the first registered camera. Lengths: those of the
    known poses where at least two are apart; else the median scale of the pairs that agree is 1, so that they stay
    metres where the pairs' are. `pair_inliers` (E,): the share of a pair's weight within the tolerance, the smaller of
    its two views'; `pair_scale` (E,): by what its lengths were multiplied. `error`: median relative residual of the
    inliers. `groups`: the views of every group that pairs hold together at the start, largest first.
    """

    registered: np.ndarray
    world_from_cam: np.ndarray
    K: np.ndarray
    depth: np.ndarray
    seen: np.ndarray
    pair_inliers: np.ndarray
    pair_scale: np.ndarray
    error: float
    groups: tuple[tuple[int, ...], ...]


def align(data: PairPoints, known: KnownCameras | None = None, config: AlignConfig | None = None) -> Alignment | None:
    """The cameras of the largest group of views. None where no two views' maps agree.

    Raises ValueError for views that are the first one of no pair, and where shapes do not fit.
    """
    config = config or AlignConfig()
    views = len(data.anchors)
    known = known or KnownCameras.nothing(views)
    _check(data, known, views)
    own = _own_points(data, views, config.tolerance)
    steps, shares = _edges(data, own, config)
    usable = shares >= config.min_inlier_share
    if not usable.any():
        return None
    strength = np.log1p(data.confidence.mean((1, 2))) * shares
    index = np.flatnonzero(usable)
    root_from_own, placed, agree = view_graph.place_views(
        views, data.pairs[index], steps[index], strength[index], config.seed
    )
    if np.count_nonzero(placed) < 2 or not agree.any():
        return None
    K = _intrinsics(data, own, known)
    world = _to_known_world(root_from_own, placed, known)
    fixed_scale = _spread(known.world_from_cam[placed & known.has_pose]) > 0
    keep = placed[data.pairs].all(1)
    trust = np.full(len(keep), DOUBTED)
    trust[index[agree]] = 1.0
    problem = Problem(
        pairs=data.pairs[keep],
        points=data.points[keep],
        confidence=(trust[:, None, None] * data.confidence)[keep],
        anchors=data.anchors,
        K=K,
        K_fixed=known.has_K,
        world_from_cam=np.where(
            (known.has_pose & placed)[:, None, None], np.nan_to_num(known.world_from_cam), rigid_part(world)
        ),
        pose_fixed=known.has_pose & (not known.poses_are_priors),
        pose_prior=known.has_pose & known.poses_are_priors,
        prior_share=known.prior_share,
        depth=np.maximum(own[..., 2] * scale_of(world)[:, None], 1e-6),
        scale_fixed=bool(fixed_scale),
    )
    solved = refine(problem, config.tolerance, config.coarse, config.iterations)
    inliers, scales = np.zeros(len(keep)), np.ones(len(keep))
    inliers[keep], scales[keep] = solved.pair_inliers, solved.pair_scale
    poses, depth = solved.world_from_cam, solved.depth
    if not fixed_scale:
        agreeing = scales[keep & (inliers >= config.min_inlier_share)]
        factor = 1 / float(np.exp(np.median(np.log(agreeing if len(agreeing) else scales[keep]))))
        anchor = _anchor_centre(known, placed)
        poses[:, :3, 3] = anchor + factor * (poses[:, :3, 3] - anchor)
        depth, scales = factor * depth, np.where(keep, factor * scales, 1.0)
    if not (known.has_pose & placed).any():
        poses = inverse(poses[np.flatnonzero(placed)[0]]) @ poses
    seen = np.zeros(depth.shape, bool)
    for side in (0, 1):
        np.logical_or.at(seen, data.pairs[keep, side], data.confidence[keep, side] > 0)
    supported = placed & _supported(data.pairs, inliers >= config.min_inlier_share, placed)
    groups = tuple(tuple(g.tolist()) for g in view_graph.components(views, data.pairs[index]) if len(g) > 1)
    return Alignment(supported, poses, solved.K, depth, seen, inliers, scales, solved.error, groups)


def _check(data: PairPoints, known: KnownCameras, views: int) -> None:
    pairs, anchors = len(data.pairs), data.anchors.shape[1]
    if data.points.shape != (pairs, 2, anchors, 3) or data.confidence.shape != (pairs, 2, anchors):
        raise ValueError(f"{pairs} pairs and {anchors} anchors do not go with points {data.points.shape}")
    if len(known.K) != views or len(known.world_from_cam) != views:
        raise ValueError(f"{len(known.K)} known cameras for {views} views")
    alone = sorted(set(range(views)) - set(data.pairs[:, 0].tolist()))
    if alone:
        raise ValueError(f"views {alone} are the first of no pair; give every pair in both orders")


def _own_points(data: PairPoints, views: int, tolerance: float) -> np.ndarray:
    """(V, A, 3) each view's anchors in its own frame, median depth 1: of its pairs' maps the one that most others
    agree with, by confidence."""
    own = np.empty((views, data.anchors.shape[1], 3))
    for view in range(views):
        mine = np.flatnonzero(data.pairs[:, 0] == view)
        points, weights = data.points[mine, 0], data.confidence[mine, 0]
        depth = np.where(weights > 0, points[..., 2], np.nan)
        middle = np.array([_positive_median(row) for row in depth])
        points = points / middle[:, None, None]
        sizes = np.maximum(np.linalg.norm(points, axis=-1), 1e-9)
        votes = np.zeros(len(mine))
        for number, one in enumerate(points):
            both = np.minimum(weights, weights[number])
            ratio = (points * one).sum(-1) / (points**2).sum(-1).clip(1e-18)
            scale = np.array([_positive_median(np.where(b > 0, r, np.nan)) for b, r in zip(both, ratio)])
            off = np.linalg.norm(scale[:, None, None] * points - one, axis=-1) / sizes[number]
            votes[number] = ((off < tolerance) * both).sum()
        own[view] = points[int(np.argmax(votes))]
    return own


def _positive_median(values: np.ndarray) -> float:
    values = values[np.isfinite(values) & (values > 0)]
    return float(np.median(values)) if len(values) else 1.0


def _edges(data: PairPoints, own: np.ndarray, config: AlignConfig) -> tuple[np.ndarray, np.ndarray]:
    """(E, 4, 4) the similarity of each pair's first view's own frame from its second's, and the smaller of both views'
    shares that agree."""
    first, second = data.pairs.T
    fits = []
    for side, view in ((0, first), (1, second)):
        points, weights = data.points[:, side], data.confidence[:, side]
        sizes = np.linalg.norm(points, axis=-1)
        fits.append(robust_similarity(points, own[view], weights, sizes, config.tolerance))
    steps = np.linalg.inv(fits[0].a_from_b) @ fits[1].a_from_b
    return steps, np.minimum(fits[0].inlier_share, fits[1].inlier_share)


def _intrinsics(data: PairPoints, own: np.ndarray, known: KnownCameras) -> np.ndarray:
    """(V, 3, 3): the known ones, else square pixels about the photo's centre with the focal of the view's own map."""
    K = known.K.copy()
    for view in np.flatnonzero(~known.has_K):
        width, height = data.sizes[view]
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        weight = data.confidence[data.pairs[:, 0] == view, 0].max(0)
        focal_px = focal_from_point_map(own[view], data.anchors[view], centre, weight > 0)
        K[view] = K_from_focal(focal_px or 1.1 * float(max(width, height)), int(width), int(height))
    return K


def _to_known_world(root_from_own: np.ndarray, placed: np.ndarray, known: KnownCameras) -> np.ndarray:
    """(V, 4, 4) the placement moved to where the known poses are: rotation by theirs, scale and place by their
    centres; both robust, for a placed view may be wrong."""
    have = np.flatnonzero(placed & known.has_pose)
    if not len(have):
        return root_from_own
    return similarity_from_poses(known.world_from_cam[have], rigid_part(root_from_own[have])) @ root_from_own


def _spread(world_from_cam: np.ndarray) -> float:
    centres = world_from_cam[:, :3, 3]
    return float(np.linalg.norm(centres - centres[0], axis=1).max()) if len(centres) else 0.0


def _anchor_centre(known: KnownCameras, placed: np.ndarray) -> np.ndarray:
    """(3,) the place that a change of scale leaves where it is."""
    have = np.flatnonzero(known.has_pose & placed)
    return known.world_from_cam[have[0], :3, 3] if len(have) else np.zeros(3)


def _supported(pairs: np.ndarray, good: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """(V,) bool: the largest group of views that pairs which agree in the end hold together."""
    if not good.any():
        return np.zeros(len(placed), bool)
    group = view_graph.components(len(placed), pairs[good])[0]
    return np.isin(np.arange(len(placed)), group) if len(group) > 1 else np.zeros(len(placed), bool)


def anchor_points(alignment: Alignment, anchors: np.ndarray) -> np.ndarray:
    """(V, A, 3) the anchors (V, A, 2) in the world."""
    points = [backproject(pixels, z, K) for pixels, z, K in zip(anchors, alignment.depth, alignment.K)]
    return transform_points(alignment.world_from_cam, np.stack(points))


def move_alignment(alignment: Alignment, new_from_world: np.ndarray) -> Alignment:
    """The same in another world, by a similarity (4, 4)."""
    scale = float(scale_of(new_from_world))
    return replace(
        alignment,
        world_from_cam=move_poses(new_from_world, alignment.world_from_cam),
        depth=scale * alignment.depth,
        pair_scale=scale * alignment.pair_scale,
    )
