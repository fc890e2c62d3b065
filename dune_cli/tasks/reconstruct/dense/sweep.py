"""The depth of one view: a coarse sweep of planes smoothed semi-globally, then refinement at full size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from dune_cli import optional
from dune_cli.geometry.cameras import backproject, pixel_grid, resize_transform, transform_pixels
from dune_cli.geometry.plane_sweep import Neighbour, Sweep, displacement_px, neighbour, smoothed, vertex
from dune_cli.geometry.semi_global import smooth_lists, smooth_planes

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
