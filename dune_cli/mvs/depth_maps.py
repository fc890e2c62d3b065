"""The depth of one view: a coarse sweep of planes smoothed semi-globally, then refinement at full size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from dune_cli import console, optional
from dune_cli.geometry.cameras import backproject, pixel_grid, project, resize_transform, transform_pixels
from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.mvs.consistency import DepthView, agreeing, compare, free_space_violations
from dune_cli.mvs.plane_sweep import Neighbour, Sweep, displacement_px, neighbour, smoothed, vertex
from dune_cli.mvs.quality import DenseConfig
from dune_cli.mvs.sgm import smooth_lists, smooth_planes
from dune_cli.mvs.view_selection import ViewPoints, dominant_normals, inverse_depth_range, points_of_views, select_views
from dune_cli.provenance import Run
from dune_cli.runtime import pick_device
from dune_cli.sfm.scene import PointMap, SparsePoints

COARSE = 0.5  # of the working size
RADIUS = 3
MAX_COST = 1.0  # anti-correlated windows are no worse than uncorrelated ones
SMALL, LARGE, SLOPE, EDGE_LEVELS = 0.05, 3.0, 0.08, 20.0
POLISHES, SMOOTH_RADIUS, LAST_RADIUS, SMOOTHER_COSTS = 2, 5, 1, 0.05
MIN_PLANE_POINTS, PLANE_MARGIN = 8, 0.1
REACH_PX = 4  # how far a pixel may take over another's surface in a round


@dataclass(frozen=True)
class SweepView:
    """A photo to be swept or compared with: `rgb` (H, W, 3) uint8, `K` (3, 3) in its pixels, `world_from_cam`, and the
    typical number of its pixels that a unit of length covers at the scene's depth, `detail`."""

    rgb: np.ndarray
    K: np.ndarray
    world_from_cam: np.ndarray
    detail: float


@dataclass(frozen=True)
class SweepDepth:
    """`inverse_depth` (H, W) float64, and `cost` (H, W) in [0, 1] of the windows there."""

    inverse_depth: np.ndarray
    cost: np.ndarray


def sweep_depth(
    view: SweepView,
    others: Sequence[SweepView],
    span: tuple[float, float],
    pixels: np.ndarray,
    inverse_depths: np.ndarray,
    normals_cam: np.ndarray,
    planes: int,
    rounds: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> SweepDepth:
    """Depth of `view` between the inverse depths `span` (far, near).

    The spacing of the planes is what moves the sparse points (`pixels` (K, 2) at `inverse_depths` (K,)) by
    about a pixel, at half the size, in the neighbour where they move most. Memory: planes + 300 numbers a pixel.
    """
    best = (len(others) + 1) // 2
    sweep, step = _prepare(view, others, COARSE, best, pixels, inverse_depths, device, dtype)
    far, near = span
    count = int(np.clip(np.ceil((near - far) / step) + 1, 8, planes))
    levels = torch.linspace(far, near, count, dtype=dtype, device=device)
    cost = torch.stack([sweep.cost(float(level)).clamp(max=MAX_COST) for level in levels])
    points_cam = backproject(pixels, 1 / inverse_depths, view.K)
    for normal in normals_cam:
        _take_slanted(cost, sweep, levels, normal, points_cam, view.K, view.rgb.shape[:2])
    total = smooth_planes(cost, SMALL, _large(sweep.grey))
    inverse_depth = levels[0] + _lowest(total) * (levels[1] - levels[0])
    step = float(levels[1] - levels[0])
    del cost, total

    sweep, _ = _prepare(view, others, 1.0, best, pixels, inverse_depths, device, dtype)
    height, width = sweep.grey.shape
    inverse_depth = F.interpolate(inverse_depth[None, None], (height, width), mode="nearest-exact")[0, 0]
    inverse_depth = smoothed(inverse_depth, 2, step)
    for _ in range(rounds):
        step /= 2
        inverse_depth = _round(sweep, inverse_depth, step, float(levels[0]), float(levels[-1]))
    inverse_depth, cost = _polish(sweep, inverse_depth, step / 2)
    return SweepDepth(inverse_depth.double().cpu().numpy(), cost.clamp(0, 1).double().cpu().numpy())


def _take_slanted(
    cost: torch.Tensor,
    sweep: Sweep,
    levels: torch.Tensor,
    normal: np.ndarray,
    points_cam: np.ndarray,
    K: np.ndarray,
    size: tuple[int, int],
) -> None:
    """Lowers `cost` (D, H, W) of the planes parallel to the image to those of planes that face `normal` (3,), which
    windows on a floor or a wall seen at a slant need: at every pixel and level, the slanted plane through that depth.

    Such planes are n . X = d, of inverse depth (n . r) / d along a ray r of depth 1: even steps of 1 / d.
    """
    height, width = sweep.grey.shape
    scale = resize_transform(width / size[1], height / size[0])
    rays = backproject(pixel_grid(height, width), 1.0, scale @ K)
    for n in (normal, -normal):
        facing = points_cam @ n
        on_planes = facing > 0.02 * points_cam[:, 2]
        if on_planes.sum() < MIN_PLANE_POINTS:
            continue
        far, near = np.percentile(1 / facing[on_planes], [2, 98]) * [1 - PLANE_MARGIN, 1 + PLANE_MARGIN]
        spacing = float(levels[1] - levels[0]) / np.quantile(facing[on_planes] / points_cam[on_planes, 2], 0.75)
        count = int(np.clip(np.ceil((near - far) / spacing) + 1, 2, len(levels)))
        steps = np.linspace(far, near, count)
        slope = torch.from_numpy(rays @ n).to(cost)
        slanted = torch.stack([sweep.cost(slope * float(step)).clamp(max=MAX_COST) for step in steps])
        usable = slope > 0.02
        slope = torch.where(usable, slope, torch.ones_like(slope))
        for level, own in zip(levels, cost):
            place = (level / slope - far) / (steps[1] - steps[0])
            inside = usable & (place >= 0) & (place <= count - 1)
            place = place.clamp(0, count - 1)
            low = place.floor().long().clamp(max=count - 2)
            below, above = (slanted.gather(0, index[None])[0] for index in (low, low + 1))
            between = below + (place - low) * (above - below)
            own.copy_(torch.where(inside, torch.minimum(own, between), own))


def _prepare(
    view: SweepView,
    others: Sequence[SweepView],
    scale: float,
    best: int,
    pixels: np.ndarray,
    inverse_depths: np.ndarray,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Sweep, float]:
    """The sweep at a size, with neighbours at about the same level of detail, and the inverse depth of one pixel."""
    grey, resized = _grey(view.rgb, scale, device, dtype)
    cam_from_world = np.linalg.inv(view.world_from_cam)
    K_ref = resized @ view.K
    neighbours: list[Neighbour] = []
    for other in others:
        shared = min(1.0, scale * view.detail / other.detail)
        image, moved = _grey(other.rgb, shared, device, dtype)
        other_from_ref = np.linalg.inv(cam_from_world @ other.world_from_cam)
        neighbours.append(neighbour(image, K_ref, moved @ other.K, other_from_ref))
    at = transform_pixels(resized, pixels)
    moves = [np.median(displacement_px(each, at, inverse_depths)) for each in neighbours]
    return Sweep(grey, neighbours, best, RADIUS), float(1 / max(moves))


def _grey(rgb: np.ndarray, scale: float, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, np.ndarray]:
    """(h, w) grey levels of the photo resized by about `scale`, and the (3, 3) pixel transform of the resize."""
    cv2 = optional.require("cv2", "multi-view stereo")

    height, width = rgb.shape[:2]
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    if size != (width, height):
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    resized = resize_transform(size[0] / width, size[1] / height)
    return torch.from_numpy(grey).to(device, dtype), resized


def _large(grey: torch.Tensor) -> torch.Tensor:
    """(H, W) the penalty of a depth edge: less across an image edge."""
    padded = F.pad(grey[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    gradient = (padded[1:-1, 2:] - padded[1:-1, :-2]).abs() + (padded[2:, 1:-1] - padded[:-2, 1:-1]).abs()
    return (LARGE / (1 + gradient / 2 / EDGE_LEVELS)).clamp(min=2 * SMALL)


def _lowest(total: torch.Tensor) -> torch.Tensor:
    """(H, W) the plane of lowest cost (D, H, W), between planes by a parabola."""
    index = total.argmin(0, keepdim=True)
    around = [total.gather(0, (index + i).clamp(0, len(total) - 1)) for i in (-1, 0, 1)]
    inside = (index > 0) & (index < len(total) - 1)
    return (index + torch.where(inside, vertex(*around), torch.zeros_like(around[0])))[0]


def _round(sweep: Sweep, inverse_depth: torch.Tensor, step: float, far: float, near: float) -> torch.Tensor:
    """Every pixel's best among its own depth, some steps nearer and farther, and its neighbours' surfaces."""
    hypotheses = [inverse_depth + i * step for i in (-2, -1, 0, 1, 2)]
    padded = F.pad(inverse_depth[None, None], (REACH_PX,) * 4, mode="replicate")[0, 0]
    height, width = inverse_depth.shape
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        y, x = (1 + dy) * REACH_PX, (1 + dx) * REACH_PX
        hypotheses.append(padded[y : y + height, x : x + width])
    labels = torch.stack(hypotheses).clamp(far, near)
    cost = torch.stack([sweep.cost(each).clamp(max=MAX_COST) for each in labels])
    total = smooth_lists(cost, labels, SLOPE / step, _large(sweep.grey))
    return labels.gather(0, total.argmin(0, keepdim=True))[0]


def _polish(sweep: Sweep, inverse_depth: torch.Tensor, step: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Smoothed where the photos do not object, then between the last step's hypotheses by a parabola."""
    for _ in range(POLISHES):
        smooth = smoothed(inverse_depth, SMOOTH_RADIUS, 2 * step)
        accepted = sweep.cost(smooth) <= sweep.cost(inverse_depth) + SMOOTHER_COSTS
        inverse_depth = torch.where(accepted, smooth, inverse_depth)
        costs = [sweep.cost(inverse_depth + i * step) for i in (-1, 0, 1)]
        inverse_depth = inverse_depth + vertex(*costs) * step
    inverse_depth = smoothed(inverse_depth, LAST_RADIUS, step)
    return inverse_depth, sweep.cost(inverse_depth)


# Depth for every view, and which of it the neighbours confirm.


SEEN_THROUGH = 0.05  # of the depth
SPECKLE_SHARE = 2e-4  # of the map; smaller islands of depth are dropped
SPECKLE_STEP = 0.02  # of the inverse depth, between pixels of one island


@dataclass(frozen=True)
class _Reduced:
    """A photo at its working size."""

    rgb: np.ndarray
    K: np.ndarray
    map_from_image: np.ndarray


@dataclass(frozen=True)
class _Depth:
    """A view's raw depth (H, W) and its windows' correlation with the neighbours (H, W) in [0, 1]."""

    view: DepthView
    correlation: np.ndarray


def dense_views(
    rgbs: Iterable[np.ndarray],
    Ks: Sequence[np.ndarray],
    world_from_cams: Sequence[np.ndarray],
    sparse: SparsePoints,
    config: DenseConfig,
    run: Run,
) -> list[PointMap | None]:
    """For each view its confirmed depth as a point map, or None: a pose of NaN, too few sparse points, no neighbour.

    `rgbs` (H, W, 3) uint8 photos without distortion, gone through once; `Ks` (3, 3) in their pixels; `sparse` with
    observations for each of them (only the indices are used). A map's long side is at most `config.effort.side_px`. A
    pixel is valid where at least `min_views` more neighbours' depth confirms it than sees through it; its depth is then
    the mean of theirs and its own, and its confidence rises with their number and the correlation of the windows.
    ValueError for lists of different lengths. Memory: about 90 bytes a pixel of a map for every view, and for the view
    at work planes + 300 numbers of 4 bytes.
    """
    if not len(Ks) == len(world_from_cams) == len(sparse.observations):
        raise ValueError(f"{len(Ks)} Ks, {len(world_from_cams)} poses, {len(sparse.observations)} observations")
    photos = [_reduce(rgb, K, config.effort.side_px) for rgb, K in zip(rgbs, Ks)]
    if len(photos) != len(Ks):
        raise ValueError(f"{len(photos)} photos, {len(Ks)} Ks")
    placed = [np.isfinite(pose).all() for pose in world_from_cams]
    seen = [index if ok else index[:0] for ok, (index, _) in zip(placed, sparse.observations)]
    points = points_of_views(sparse.points_world, seen, world_from_cams)
    neighbours = select_views(sparse.points_world, points, Ks, world_from_cams, config.effort.neighbours)
    with run.stage("dense depth"):
        indices = console.progress(range(len(photos)), "depth", unit="view")
        normals = dominant_normals(sparse.points_world, config.effort.directions)
        depths = [
            _sweep(i, photos, world_from_cams, sparse.points_world, points, neighbours[i], normals, config)
            for i in indices
        ]
    with run.stage("dense consistency"):
        shown = console.progress(depths, "consistency", unit="view")
        return [
            None if depth is None else _confirmed(depth, [depths[j] for j in neighbours[i]], photos[i], config)
            for i, depth in enumerate(shown)
        ]


def _reduce(rgb: np.ndarray, K: np.ndarray, side_px: int) -> _Reduced:
    cv2 = optional.require("cv2", "multi-view stereo")

    height, width = rgb.shape[:2]
    scale = side_px / max(height, width)
    if scale >= 1:
        return _Reduced(rgb, np.asarray(K, dtype=np.float64), np.eye(3))
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    moved = resize_transform(size[0] / width, size[1] / height)
    return _Reduced(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), moved @ K, moved)


def _sweep(
    index: int,
    photos: Sequence[_Reduced],
    poses: Sequence[np.ndarray],
    points_world: np.ndarray,
    points: Sequence[ViewPoints],
    neighbours: Sequence[int],
    normals_world: np.ndarray,
    config: DenseConfig,
) -> _Depth | None:
    span = inverse_depth_range(points[index])
    if span is None or not neighbours:
        return None

    def seen_as(i: int) -> SweepView:
        focal_px = float(np.sqrt(abs(np.linalg.det(photos[i].K[:2, :2]))))
        return SweepView(photos[i].rgb, photos[i].K, poses[i], focal_px / float(np.median(points[i].depth)))

    points_cam = transform_points(inverse(poses[index]), points_world[points[index].index])
    found = sweep_depth(
        seen_as(index),
        [seen_as(i) for i in neighbours],
        span,
        project(points_cam, photos[index].K),
        1 / points_cam[:, 2],
        normals_world @ poses[index][:3, :3],
        config.effort.planes,
        config.effort.rounds,
        pick_device(config.device),
    )
    depth = np.where(found.inverse_depth > 0, 1 / np.maximum(found.inverse_depth, 1e-30), np.nan)
    view = DepthView(depth.astype(np.float32), photos[index].K, poses[index])
    return _Depth(view, (1 - found.cost).astype(np.float32))


def _confirmed(depth: _Depth, others: Sequence[_Depth | None], photo: _Reduced, config: DenseConfig) -> PointMap:
    view = replace(depth.view, depth=depth.view.depth.astype(np.float64))
    total, count = 1 / view.depth, np.zeros(view.depth.shape, dtype=int)
    against = np.zeros_like(count)
    known = [other for other in others if other is not None]
    for other in known:
        agreement = compare(view, other.view)
        good = agreeing(view, agreement, config.max_error_px, config.max_depth_error)
        total += np.where(good, 1 / np.where(good, agreement.depth, 1), 0)
        count += good
        against += free_space_violations(view, agreement, SEEN_THROUGH)
    needed = min(config.min_views, max(len(known), 1))
    inverse_depth = np.where(count - against >= needed, total / (1 + count), np.nan)
    inverse_depth = without_speckles(inverse_depth)
    valid = np.isfinite(inverse_depth)
    points_cam = backproject(pixel_grid(*valid.shape), 1 / inverse_depth, view.K)
    confidence = np.where(valid, _confidence(count - against, depth.correlation), 0)
    return PointMap(
        transform_points(view.world_from_cam, points_cam).astype(np.float32),
        confidence.astype(np.float32),
        valid,
        photo.rgb,
        np.linalg.inv(photo.map_from_image),
    )


def _confidence(count: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    """About the share of such pixels whose depth is right within 5 %, as measured on indoor photos with sensor depth,
    by the number of neighbours for less those against, and lower where windows hardly correlate."""
    return (1 - 0.4 * 0.5 ** np.maximum(count, 0)) * (0.85 + 0.15 * (correlation / 0.4).clip(0, 1))


def without_speckles(inverse_depth: np.ndarray) -> np.ndarray:
    """(H, W) with islands smaller than a 5,000th of the map made NaN; one surface changes by less than 2 % a pixel."""
    cv2 = optional.require("cv2", "multi-view stereo")

    known = np.isfinite(inverse_depth)
    if not known.any():
        return inverse_depth
    # in logarithms, so that a share of the depth is one difference everywhere
    level = np.log(np.where(known, inverse_depth, 1))
    low, high = level[known].min(), level[known].max()
    unit = max(SPECKLE_STEP / 64, (high - low) / 30_000)
    fixed = np.where(known, np.rint((level - low) / unit), -1000).astype(np.int16)
    cv2.filterSpeckles(fixed, -1000, max(12, round(SPECKLE_SHARE * fixed.size)), max(1, SPECKLE_STEP / unit))
    return np.where(fixed >= 0, inverse_depth, np.nan)
