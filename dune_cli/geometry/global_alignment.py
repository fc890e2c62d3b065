"""Global alignment: the point maps of many pairs, each in its first camera's frame and its own scale, to cameras in one
world.

S. Wang et al., "DUSt3R: Geometric 3D Vision Made Easy", CVPR 2024, section 3.4: every pair gets a scale, every view a
pose, a focal length and depths, such that both describe the same points. As in B. Duisterhof et al., "MASt3R-SfM",
2024, section 4, on a few anchors of each view instead of all pixels. The frame of a pair is its first camera, which
DUSt3R leaves free: tied, the same iterations came five times nearer to the truth. The robust kernel, the initial poses
(`view_graph`) and the known cameras are our own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from dune_cli.geometry import view_graph
from dune_cli.geometry.cameras import K_from_focal, backproject, focal_from_point_map
from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.geometry.sim3 import move_poses, rigid_part, robust_similarity, scale_of, similarity_from_poses

LBFGS_TOLERANCE = 1e-10  # of the gradient and of a step
OUTLIER_WEIGHT = 0.1  # of pairs that do not agree with the initial poses; they may still close a long chain's loop


@dataclass(frozen=True)
class PairPoints:
    """E pairs of V views, with their points at both views' anchors.

    `pairs` (E, 2) view numbers, no pair twice; `points` (E, 2, A, 3): the anchors of its first and of its second view,
    both in the first camera's frame; `confidence` (E, 2, A): their weights, 0 for anchors that are not used. `anchors`
    (V, A, 2): the anchors' pixels in the photos of `sizes` (V, 2), width and height. Every view must be the first one
    of some pair.
    """

    pairs: np.ndarray
    points: np.ndarray
    confidence: np.ndarray
    anchors: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True)
class KnownCameras:
    """What is known of V cameras: `K` (V, 3, 3) and `world_from_cam` (V, 4, 4), NaN where it is unknown.

    Known intrinsics are fixed. Known poses are fixed, or with `poses_are_priors` have the weight of `prior_share` of
    the camera's points (in radians, and shares of the scene's median depth).
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
    """`tolerance`: relative residual within which points agree. `min_inlier_share`: the share of a pair's weight that
    must agree with another pair's map of the same view for the two to be connected. `iterations` of LBFGS in each
    stage; the kernels shrink from `coarse` to the estimated noise. `seed` of the spanning trees."""

    tolerance: float = 0.1
    min_inlier_share: float = 0.3
    coarse: float = 0.3
    iterations: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Alignment:
    """`registered` (V,): the views of the largest connected component; the values of the others have no meaning.

    `world_from_cam` (V, 4, 4), `K` (V, 3, 3), `depth` (V, A) z of the anchors, `seen` (V, A): the anchors that some
    pair has a weight for. The world is that of the known poses, else the first registered camera. The unit of length is
    that of the known poses where at least two have different centres; else the median scale of the pairs that agree is
    1, so that metric pairs stay metric. `pair_inliers` (E,): the share of a pair's weight within the tolerance, the
    smaller of its two views'. `pair_scale` (E,): the factor on its lengths. `error`: median relative residual of the
    inliers. `groups`: the views of every connected component of the initial view graph, largest first.
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
    """The cameras of the largest connected component. None where no two views' maps agree.

    ValueError for views that are the first one of no pair, and for shapes that do not fit.
    """
    config = config or AlignConfig()
    views = len(data.anchors)
    known = known or KnownCameras.nothing(views)
    _check(data, known, views)
    own_points = _own_points(data, views, config.tolerance)
    relative, shares = _relative_similarities(data, own_points, config)
    usable = shares >= config.min_inlier_share
    if not usable.any():
        return None
    scores = np.log1p(data.confidence.mean((1, 2))) * shares
    edges = np.flatnonzero(usable)
    root_from_own, connected, agree = view_graph.register_views(
        views, data.pairs[edges], relative[edges], scores[edges], config.seed
    )
    if np.count_nonzero(connected) < 2 or not agree.any():
        return None
    K = _intrinsics(data, own_points, known)
    world_from_own = _to_known_world(root_from_own, connected, known)
    scale_is_known = _spread(known.world_from_cam[connected & known.has_pose]) > 0
    keep = connected[data.pairs].all(1)
    weight = np.full(len(keep), OUTLIER_WEIGHT)
    weight[edges[agree]] = 1.0
    problem = _AlignmentProblem(
        pairs=data.pairs[keep],
        points=data.points[keep],
        confidence=(weight[:, None, None] * data.confidence)[keep],
        anchors=data.anchors,
        K=K,
        K_fixed=known.has_K,
        world_from_cam=np.where(
            (known.has_pose & connected)[:, None, None], np.nan_to_num(known.world_from_cam), rigid_part(world_from_own)
        ),
        pose_fixed=known.has_pose & (not known.poses_are_priors),
        pose_prior=known.has_pose & known.poses_are_priors,
        prior_share=known.prior_share,
        depth=np.maximum(own_points[..., 2] * scale_of(world_from_own)[:, None], 1e-6),
        scale_fixed=bool(scale_is_known),
    )
    solution = _refine(problem, config)
    inliers, scales = np.zeros(len(keep)), np.ones(len(keep))
    inliers[keep], scales[keep] = solution.pair_inliers, solution.pair_scale
    poses, depth = solution.world_from_cam, solution.depth
    if not scale_is_known:
        agreeing = scales[keep & (inliers >= config.min_inlier_share)]
        factor = 1 / float(np.exp(np.median(np.log(agreeing if len(agreeing) else scales[keep]))))
        fixed_point = _fixed_point(known, connected)
        poses[:, :3, 3] = fixed_point + factor * (poses[:, :3, 3] - fixed_point)
        depth, scales = factor * depth, np.where(keep, factor * scales, 1.0)
    if not (known.has_pose & connected).any():
        poses = inverse(poses[np.flatnonzero(connected)[0]]) @ poses
    seen = np.zeros(depth.shape, bool)
    for side in (0, 1):
        np.logical_or.at(seen, data.pairs[keep, side], data.confidence[keep, side] > 0)
    registered = connected & _largest_component(data.pairs, inliers >= config.min_inlier_share, views)
    groups = tuple(tuple(g.tolist()) for g in view_graph.components(views, data.pairs[edges]) if len(g) > 1)
    return Alignment(registered, poses, solution.K, depth, seen, inliers, scales, solution.error, groups)


def anchor_points(alignment: Alignment, anchors: np.ndarray) -> np.ndarray:
    """(V, A, 3) the anchors (V, A, 2) in the world."""
    points = [backproject(pixels, z, K) for pixels, z, K in zip(anchors, alignment.depth, alignment.K)]
    return transform_points(alignment.world_from_cam, np.stack(points))


def move_alignment(alignment: Alignment, new_from_world: np.ndarray) -> Alignment:
    """The alignment in another world, by a similarity (4, 4)."""
    scale = float(scale_of(new_from_world))
    return replace(
        alignment,
        world_from_cam=move_poses(new_from_world, alignment.world_from_cam),
        depth=scale * alignment.depth,
        pair_scale=scale * alignment.pair_scale,
    )


def _check(data: PairPoints, known: KnownCameras, views: int) -> None:
    pairs, anchors = len(data.pairs), data.anchors.shape[1]
    if data.points.shape != (pairs, 2, anchors, 3) or data.confidence.shape != (pairs, 2, anchors):
        raise ValueError(f"{pairs} pairs and {anchors} anchors do not go with points {data.points.shape}")
    if len(known.K) != views or len(known.world_from_cam) != views:
        raise ValueError(f"{len(known.K)} known cameras for {views} views")
    never_first = sorted(set(range(views)) - set(data.pairs[:, 0].tolist()))
    if never_first:
        raise ValueError(f"views {never_first} are the first of no pair; give every pair in both orders")


def _own_points(data: PairPoints, views: int, tolerance: float) -> np.ndarray:
    """(V, A, 3) each view's anchors in its own frame, median depth 1: of its pairs' maps the one with which the others
    agree most, weighted by confidence."""
    own = np.empty((views, data.anchors.shape[1], 3))
    for view in range(views):
        rows = np.flatnonzero(data.pairs[:, 0] == view)
        points, weights = data.points[rows, 0], data.confidence[rows, 0]
        depth = np.where(weights > 0, points[..., 2], np.nan)
        median = np.array([_positive_median(row) for row in depth])
        points = points / median[:, None, None]
        sizes = np.maximum(np.linalg.norm(points, axis=-1), 1e-9)
        votes = np.zeros(len(rows))
        for number, candidate in enumerate(points):
            both = np.minimum(weights, weights[number])
            ratio = (points * candidate).sum(-1) / (points**2).sum(-1).clip(1e-18)
            scale = np.array([_positive_median(np.where(b > 0, r, np.nan)) for b, r in zip(both, ratio)])
            residual = np.linalg.norm(scale[:, None, None] * points - candidate, axis=-1) / sizes[number]
            votes[number] = ((residual < tolerance) * both).sum()
        own[view] = points[int(np.argmax(votes))]
    return own


def _positive_median(values: np.ndarray) -> float:
    values = values[np.isfinite(values) & (values > 0)]
    return float(np.median(values)) if len(values) else 1.0


def _relative_similarities(
    data: PairPoints, own_points: np.ndarray, config: AlignConfig
) -> tuple[np.ndarray, np.ndarray]:
    """(E, 4, 4) the similarity from each pair's second view's own frame to the first one's, and the smaller of both
    views' inlier shares."""
    first, second = data.pairs.T
    fits = []
    for side, view in ((0, first), (1, second)):
        points, weights = data.points[:, side], data.confidence[:, side]
        sizes = np.linalg.norm(points, axis=-1)
        fits.append(robust_similarity(points, own_points[view], weights, sizes, config.tolerance))
    relative = np.linalg.inv(fits[0].a_from_b) @ fits[1].a_from_b
    return relative, np.minimum(fits[0].inlier_share, fits[1].inlier_share)


def _intrinsics(data: PairPoints, own_points: np.ndarray, known: KnownCameras) -> np.ndarray:
    """(V, 3, 3): the known ones, else square pixels about the photo's centre with the focal length of the view's own
    points."""
    K = known.K.copy()
    for view in np.flatnonzero(~known.has_K):
        width, height = data.sizes[view]
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        weight = data.confidence[data.pairs[:, 0] == view, 0].max(0)
        focal_px = focal_from_point_map(own_points[view], data.anchors[view], centre, weight > 0)
        K[view] = K_from_focal(focal_px or 1.1 * float(max(width, height)), int(width), int(height))
    return K


def _to_known_world(root_from_own: np.ndarray, connected: np.ndarray, known: KnownCameras) -> np.ndarray:
    """(V, 4, 4) the initial poses in the world of the known ones, by a robust similarity: some may be wrong."""
    both = np.flatnonzero(connected & known.has_pose)
    if not len(both):
        return root_from_own
    return similarity_from_poses(known.world_from_cam[both], rigid_part(root_from_own[both])) @ root_from_own


def _spread(world_from_cam: np.ndarray) -> float:
    centres = world_from_cam[:, :3, 3]
    return float(np.linalg.norm(centres - centres[0], axis=1).max()) if len(centres) else 0.0


def _fixed_point(known: KnownCameras, connected: np.ndarray) -> np.ndarray:
    """(3,) the point that a change of scale does not move: the centre of a known pose, else the origin."""
    both = np.flatnonzero(known.has_pose & connected)
    return known.world_from_cam[both[0], :3, 3] if len(both) else np.zeros(3)


def _largest_component(pairs: np.ndarray, agree: np.ndarray, views: int) -> np.ndarray:
    """(V,) bool: the largest connected component of the pairs that agree, if it has two views."""
    if not agree.any():
        return np.zeros(views, bool)
    component = view_graph.components(views, pairs[agree])[0]
    return np.isin(np.arange(views), component) if len(component) > 1 else np.zeros(views, bool)


# The robust least squares: poses, focal lengths, depths and pair scales together, in torch, float64.
#
# Residual of anchor a of view v in pair e = (i, j): |world_from_cam_v(depth K^-1 pixel) - world_from_cam_i(scale_e
# point)| over the anchor's initial distance; Geman-McClure, weighted by confidence; LBFGS.


@dataclass(frozen=True)
class _AlignmentProblem:
    """V views, E pairs, A anchors; arrays as in `PairPoints`, with initial cameras and `depth` (V, A).

    `K_fixed`, `pose_fixed`, `pose_prior` (V,) bool. `scale_fixed`: the known poses determine the world's scale; else
    the geometric mean of the pairs' scales is kept (DUSt3R, section 3.4).
    """

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
class _AlignmentSolution:
    """`world_from_cam` (V, 4, 4), `K` (V, 3, 3), `depth` (V, A), `pair_scale`, `pair_inliers` (E,), median `error`."""

    world_from_cam: np.ndarray
    K: np.ndarray
    depth: np.ndarray
    pair_scale: np.ndarray
    pair_inliers: np.ndarray
    error: float


def _refine(problem: _AlignmentProblem, config: AlignConfig) -> _AlignmentSolution:
    """Four stages, with a kernel of `coarse`, then the tolerance, then three times the noise of the residuals."""
    optimisation = _Optimisation(problem)
    tolerance, kernel = config.tolerance, config.coarse
    for stage in range(4):
        optimisation.solve(kernel, config.iterations)
        residuals = optimisation.residuals().detach()
        inliers = residuals[(residuals < tolerance) & (optimisation.weights > 0)]
        noise = 1.5 * float(inliers.median()) if inliers.numel() else tolerance
        kernel = max(tolerance, kernel / 3) if stage == 0 else min(tolerance, max(3 * noise, 1e-4))
    return optimisation.solution(tolerance)


class _Optimisation:
    """The parameters: changes of the initial values, in units of about 1."""

    def __init__(self, problem: _AlignmentProblem) -> None:
        self.problem = problem
        # anchors without a weight do not count for the unit
        used = np.zeros(problem.depth.shape, bool)
        for side in (0, 1):
            np.logical_or.at(used, problem.pairs[:, side], problem.confidence[:, side] > 0)
        self.unit = float(np.median(problem.depth[used]))
        tensor = torch.from_numpy
        pose = tensor(np.ascontiguousarray(problem.world_from_cam))
        views = len(pose)
        self.rotation, self.centre = pose[:, :3, :3], pose[:, :3, 3] / self.unit
        self.log_depth = tensor(np.log(problem.depth / self.unit))
        self.pairs, self.points = tensor(problem.pairs), tensor(problem.points)
        self.K = tensor(problem.K)
        self.pixels = tensor(problem.anchors)
        self.weights = tensor(problem.confidence / max(problem.confidence.sum(), 1e-300))
        self.view_weights = torch.zeros(views, dtype=torch.float64)
        self.view_weights.index_put_((self.pairs.reshape(-1),), self.weights.sum(-1).reshape(-1), accumulate=True)
        zero = torch.zeros_like(self.centre)
        with torch.no_grad():
            start = self._anchors_in_world(zero, self.centre, self.log_depth, torch.zeros(views))
        self.sizes = (start - self.centre[:, None]).norm(dim=-1).clamp(min=1e-6)[self.pairs]
        unscaled = self._pairs_in_world(zero, self.centre, torch.zeros(len(self.pairs), dtype=torch.float64))
        origin = self.centre[self.pairs[:, 0], None, None]
        ratio = (start[self.pairs] - origin).norm(dim=-1) / (unscaled - origin).norm(dim=-1).clamp(min=1e-12)
        ratio = torch.where(self.weights > 0, ratio, torch.nan)[:, 0]
        log_scale = ratio.nanmedian(dim=1).values.log()
        self.values = {
            "rotvec": torch.zeros(views, 3, dtype=torch.float64),
            "shift": torch.zeros(views, 3, dtype=torch.float64),
            "log_focal": torch.zeros(views, dtype=torch.float64),
            "log_depth": torch.zeros_like(self.log_depth),
            "pair_log_scale": log_scale,
        }
        self.mean_log_scale = self.values["pair_log_scale"].mean()
        free = torch.from_numpy(~problem.pose_fixed)[:, None].double()
        self.masks = {"rotvec": free, "shift": free, "log_focal": torch.from_numpy(~problem.K_fixed).double()}
        for value in self.values.values():
            value.requires_grad_(True)

    def solve(self, kernel: float, iterations: int) -> None:
        optimizer = torch.optim.LBFGS(
            list(self.values.values()),
            max_iter=iterations,
            history_size=30,
            tolerance_grad=LBFGS_TOLERANCE,
            tolerance_change=LBFGS_TOLERANCE,
            line_search_fn="strong_wolfe",
        )

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            square = (self.residuals() / kernel) ** 2
            loss = (self.weights * square / (1 + square)).sum()
            if self.problem.pose_prior.any():
                loss = loss + self._prior_loss(kernel)
            loss.backward()
            return loss

        optimizer.step(closure)

    def residuals(self) -> torch.Tensor:
        """(E, 2, A) relative."""
        rotvec, centre, log_depth = self._value("rotvec"), self.centre + self._value("shift"), self._value("log_depth")
        anchors = self._anchors_in_world(rotvec, centre, self.log_depth + log_depth, self._value("log_focal"))
        pairs = self._pairs_in_world(rotvec, centre, self._value("pair_log_scale"))
        return (((anchors[self.pairs] - pairs) ** 2).sum(-1) + 1e-24).sqrt() / self.sizes

    def _value(self, name: str) -> torch.Tensor:
        """A parameter, zero where it is fixed; the scales with their mean where the world's scale is free."""
        value = self.values[name]
        if name == "pair_log_scale" and not self.problem.scale_fixed:
            return value - value.mean() + self.mean_log_scale
        return value * self.masks[name] if name in self.masks else value

    def _anchors_in_world(
        self, rotvec: torch.Tensor, centre: torch.Tensor, log_depth: torch.Tensor, log_focal: torch.Tensor
    ) -> torch.Tensor:
        """(V, A, 3) by the views' cameras and depths."""
        focal = torch.stack([self.K[:, 0, 0], self.K[:, 1, 1]], -1) * log_focal.double().exp()[:, None]
        offset = self.pixels - self.K[:, None, :2, 2]
        y = offset[..., 1] / focal[:, None, 1]
        x = (offset[..., 0] - self.K[:, None, 0, 1] * y) / focal[:, None, 0]
        rays = torch.stack([x, y, torch.ones_like(x)], -1)
        points = rays * log_depth.exp()[..., None]
        return points @ (_rotation_from_rotvec(rotvec) @ self.rotation).mT + centre[:, None]

    def _pairs_in_world(self, rotvec: torch.Tensor, centre: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
        """(E, 2, A, 3) the pairs' points, by the cameras of their first views and their scales."""
        linear = (_rotation_from_rotvec(rotvec) @ self.rotation)[self.pairs[:, 0]] * log_scale.exp()[:, None, None]
        return self.points @ linear.mT[:, None] + centre[self.pairs[:, 0], None, None]

    def _prior_loss(self, kernel: float) -> torch.Tensor:
        """Of the changes of poses with a prior, as if a share of the camera's points moved with it."""
        change = (self._value("rotvec") ** 2).sum(-1) + (self._value("shift") ** 2).sum(-1)
        weight = self.problem.prior_share * self.view_weights * torch.from_numpy(self.problem.pose_prior).double()
        return (weight * change).sum() / kernel**2

    @torch.no_grad()
    def solution(self, tolerance: float) -> _AlignmentSolution:
        poses = self.problem.world_from_cam.copy()
        free = ~self.problem.pose_fixed
        poses[free, :3, :3] = (_rotation_from_rotvec(self._value("rotvec")) @ self.rotation).numpy()[free]
        poses[free, :3, 3] = (self.unit * (self.centre + self._value("shift"))).numpy()[free]
        K = self.problem.K.copy()
        K[:, (0, 1), (0, 1)] *= self._value("log_focal").exp().numpy()[:, None]
        residuals, weights = self.residuals(), self.weights
        inlier_share = ((residuals < tolerance) * weights).sum(2) / weights.sum(2).clamp(min=1e-300)
        inliers = residuals[(residuals < tolerance) & (weights > 0)]
        return _AlignmentSolution(
            world_from_cam=poses,
            K=K,
            depth=self.unit * (self.log_depth + self._value("log_depth")).exp().numpy(),
            pair_scale=self.unit * self._value("pair_log_scale").exp().numpy(),
            pair_inliers=inlier_share.min(1).values.numpy(),
            error=float(inliers.median()) if inliers.numel() else float("inf"),
        )


def _rotation_from_rotvec(rotvec: torch.Tensor) -> torch.Tensor:
    """(..., 3, 3) rotations of rotation vectors (..., 3), with a gradient at 0 (Rodrigues)."""
    angle = ((rotvec**2).sum(-1) + 1e-30).sqrt()[..., None, None]
    x, y, z = rotvec.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    half = torch.sinc(angle / (2 * torch.pi))
    return torch.eye(3, dtype=rotvec.dtype) + torch.sinc(angle / torch.pi) * skew + 0.5 * half**2 * (skew @ skew)
