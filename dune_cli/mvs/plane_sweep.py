"""Depth of one view by plane sweeping, in torch on any device: NCC costs, a sweep of all planes with semi-global cost
aggregation on a small photo, then refinement by a few hypotheses a pixel up a pyramid to full size.

A plane sweep (R. Collins, "A space-sweep approach to true multi-image matching", CVPR 1996) compares the window around
a reference pixel with the source views' windows along its ray. A hypothesis is a map of inverse depths, not one
number: windows follow the surface that the map describes, such as a plane parallel to the image or a slanted one (D.
Gallup et al., "Real-time plane-sweeping stereo with multiple sweeping directions", CVPR 2007).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from dune_cli import optional
from dune_cli.geometry.cameras import backproject, pixel_grid, resize_transform, transform_pixels
from dune_cli.mvs.sgm import aggregate_hypotheses, aggregate_planes

NOISE_LEVELS = 2.0  # grey levels of 255: windows with less contrast match nothing well
OUTSIDE_COST = 1.0  # where a source view does not see the point: as if uncorrelated
BORDER_PX = 1e-3  # from the last pixel, where OpenCV still interpolates quickly
EDGE_SHARPNESS = 1e6  # of the step between inside and outside a source view, per half its size
COARSE_SOURCES = 4  # of the source views, best first: more let false matches in, for more time
COARSE_SCALE, COARSE_PX = 0.25, 160  # of the coarsest level: larger, up to twice, where the long side were shorter
WINDOW_RADIUS = 3
REACH = 2  # steps to either side that a round of refinement tries; one at full size
MAX_COST = 1.0  # anti-correlated windows are no worse than uncorrelated ones
P1, P2, SLOPE_PENALTY, EDGE_LEVELS = 0.05, 3.0, 0.08, 20.0  # penalties of the aggregation; grey levels that halve P2
SMOOTHING_PASSES, SMOOTHING_RADIUS, FINAL_RADIUS, SMOOTHING_TOLERANCE = 2, 5, 1, 0.05
MIN_PLANE_POINTS, MIN_PLANE_SHARE, PLANE_MARGIN = 8, 0.1, 0.1
FACING = 0.95  # cosine to the view's axis beyond which planes are as good as parallel to the image
FAR_AWAY = 1e18  # a finite value that no inverse depth is near to
SMOOTHING_STEPS = 4.0  # between a pixel and what it is averaged with
PROPAGATION_PX = 4  # how far a pixel may adopt another pixel's depth in a round of refinement


@dataclass(frozen=True)
class SweepImage:
    """A photo for the sweep: `rgb` (H, W, 3) uint8, `K` (3, 3) in its pixels, `world_from_cam` (4, 4), and
    `pixels_per_unit`, the number of its pixels that a unit of length covers at the scene's typical depth."""

    rgb: np.ndarray
    K: np.ndarray
    world_from_cam: np.ndarray
    pixels_per_unit: float


@dataclass(frozen=True)
class DepthPrior:
    """The depth of a view as its sparse points have it: `inverse_depth_range` (far, near); the points' `pixels` (K, 2)
    and `inverse_depths` (K,); `normals_cam` (F, 3), plane directions of the scene in the camera's frame."""

    inverse_depth_range: tuple[float, float]
    pixels: np.ndarray
    inverse_depths: np.ndarray
    normals_cam: np.ndarray


@dataclass(frozen=True)
class SweepResult:
    """`inverse_depth` (H, W) float64, and the matching `cost` (H, W) in [0, 1] there."""

    inverse_depth: np.ndarray
    cost: np.ndarray


@dataclass(frozen=True)
class SourceView:
    """A source view: `grey` (h, w) in [0, 255], and where the reference view's pixels project to in it.

    A pixel (x, y) at inverse depth i projects to the homogeneous `homography` @ (x, y, 1) + i * `epipole`. These are
    the infinite homography K_source R K_ref^-1 (3, 3) and K_source t (3,) of `source_from_ref`.
    """

    grey: torch.Tensor
    homography: np.ndarray
    epipole: np.ndarray


def source_view(grey: torch.Tensor, K_ref: np.ndarray, K_source: np.ndarray, source_from_ref: np.ndarray) -> SourceView:
    """A `SourceView` from the intrinsics (3, 3) of both images and the pose (4, 4)."""
    homography = K_source @ source_from_ref[:3, :3] @ np.linalg.inv(K_ref)
    return SourceView(grey, homography, K_source @ source_from_ref[:3, 3])


def displacement_px(view: SourceView, pixels: np.ndarray, inverse_depth: np.ndarray) -> np.ndarray:
    """(M,) pixels by which the projections of `pixels` (M, 2) at `inverse_depth` (M,) move per unit of inverse
    depth."""
    homogeneous = np.concatenate([pixels, np.ones_like(pixels[:, :1])], axis=1)
    projected = homogeneous @ view.homography.T + inverse_depth[:, None] * view.epipole
    depth = projected[:, 2:]
    return np.linalg.norm((view.epipole[:2] * depth - projected[:, :2] * view.epipole[2]) / depth**2, axis=1)


class PlaneSweep:
    """Matching costs of depth hypotheses of one reference view against its source views.

    `grey` (H, W) in [0, 255], float32 or float64. At each pixel the cost is the mean of the `best` lowest ones over
    the source views, so that views in which the point is occluded do not count (S. B. Kang, R. Szeliski and J. Chai,
    "Handling occlusions in dense multi-view stereo", CVPR 2001). `radius` of the square window. Memory: about 16 maps.
    """

    def __init__(self, grey: torch.Tensor, source_views: Sequence[SourceView], best: int, radius: int) -> None:
        self.grey, self.best, self.radius = grey, min(best, len(source_views)), radius
        self.mean = box_mean(grey, radius)
        self.variance = (box_mean(grey * grey, radius) - self.mean**2).clamp(min=0) + NOISE_LEVELS**2
        height, width = grey.shape
        x = torch.arange(width, dtype=grey.dtype, device=grey.device)
        y = torch.arange(height, dtype=grey.dtype, device=grey.device)[:, None]
        self.views = []
        for view in source_views:
            # in grid_sample's units, where -1 and 1 are the image's outer edges
            h, w = view.grey.shape
            to_grid = np.array([[2 / w, 0, 1 / w - 1], [0, 2 / h, 1 / h - 1], [0, 0, 1]])
            rows, shift = (to_grid @ view.homography).tolist(), (to_grid @ view.epipole).tolist()
            self.views.append((view.grey[None, None], [(row[0] * x + row[2], row[1] * y) for row in rows], shift))
        self._projected = [torch.empty_like(grey) for _ in range(3)]
        self._pixels = [torch.empty_like(grey) for _ in range(2)]
        self._grid = grey.new_empty((1, height, width, 2))

    def cost(self, inverse_depth: torch.Tensor | float) -> torch.Tensor:
        """(H, W) 1 - NCC in [0, 2] of the hypothesis `inverse_depth`: a number or a map (H, W)."""
        lowest: list[torch.Tensor] = []
        for grey, rays, shift in self.views:
            lowest = _insert_lowest(lowest, self._cost_of_view(grey, rays, shift, inverse_depth), self.best)
        return lowest[0] if len(lowest) == 1 else sum(lowest[1:], lowest[0]) / len(lowest)

    def _cost_of_view(
        self,
        grey: torch.Tensor,
        rays: list[tuple[torch.Tensor, torch.Tensor]],
        shift: list[float],
        inverse_depth: torch.Tensor | float,
    ) -> torch.Tensor:
        x, y, depth = self._projected
        for out, (along_x, along_y), s in zip(self._projected, rays, shift):
            if isinstance(inverse_depth, torch.Tensor):
                torch.add(along_x, inverse_depth, alpha=s, out=out).add_(along_y)
            else:
                torch.add(along_x + inverse_depth * s, along_y, out=out)
        depth.clamp_(min=1e-6)  # what is behind the view lands far outside
        warped = self._sampled(grey, x.div_(depth), y.div_(depth))
        inside = torch.maximum(x.abs_(), y.abs_()).mul_(-EDGE_SHARPNESS).add_(EDGE_SHARPNESS).clamp_(0, 1)
        mean = box_mean(warped, self.radius)
        # rounding leaves no negative sum, as the noise is larger
        variance = box_mean(warped * warped, self.radius).addcmul_(mean, mean, value=-1).add_(NOISE_LEVELS**2)
        scale = variance.mul_(self.variance).rsqrt_().mul_(inside)
        covariance = box_mean(warped.mul_(self.grey), self.radius).addcmul_(mean, self.mean, value=-1)
        return covariance.mul_(scale).neg_().add_(OUTSIDE_COST)

    def _sampled(self, grey: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(H, W) a source view's `grey` (1, 1, h, w) at (x, y) in grid_sample's units, the border repeated. By OpenCV,
        which takes half the time, for float32 on a processor."""
        if grey.device.type != "cpu" or grey.dtype != torch.float32:
            self._grid[0, ..., 0].copy_(x)
            self._grid[0, ..., 1].copy_(y)
            return F.grid_sample(grey, self._grid, padding_mode="border", align_corners=False)[0, 0]
        cv2 = optional.require("cv2", "multi-view stereo")
        for out, at, size in zip(self._pixels, (x, y), (grey.shape[3], grey.shape[2])):
            # clamped, as OpenCV is slow beyond the border
            torch.mul(at, size / 2, out=out).add_((size - 1) / 2).clamp_(0, size - 1 - BORDER_PX)
        columns, rows = (one.numpy() for one in self._pixels)
        return torch.from_numpy(
            cv2.remap(grey[0, 0].numpy(), columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        )


def sweep_depth(
    reference: SweepImage,
    sources: Sequence[SweepImage],
    prior: DepthPrior,
    planes: int,
    rounds: int,
    device: torch.device,
) -> SweepResult:
    """Depth of `reference` within the prior's range, from coarse to fine in a pyramid.

    All planes are swept at the coarsest level only: a quarter of the size, half of it for small photos. Between two of
    them, the sparse points move by about a pixel there, in the source view where they move most; there are at most
    `planes`. Slanted planes in the prior's directions are swept as well. The levels above try a few depths around the
    one below, and those of pixels near by: in `rounds` rounds each, the steps halved from one to the next. Memory:
    planes / 16 + 60 numbers a pixel.
    """
    coarse = float(np.clip(COARSE_PX / max(reference.rgb.shape[:2]), COARSE_SCALE, 2 * COARSE_SCALE))
    far, near = prior.inverse_depth_range
    inverse_depth, step = _coarse_depth(reference, sources, prior, planes, coarse, device)
    for scale in (np.sqrt(coarse), 1.0) if coarse < 0.45 else (1.0,):
        sweep, _ = _plane_sweep(reference, sources, prior, scale, device)
        inverse_depth = F.interpolate(inverse_depth[None, None], tuple(sweep.grey.shape), mode="nearest-exact")[0, 0]
        inverse_depth = smooth_planar(inverse_depth, 2, step)
        for _ in range(rounds if scale < 1 else 1):
            step /= 2
            inverse_depth = _refine(sweep, inverse_depth, step, REACH if scale < 1 else 1, (far, near))
    inverse_depth, cost = _smooth_and_interpolate(sweep, inverse_depth, step / 2)
    return SweepResult(inverse_depth.double().cpu().numpy(), cost.clamp(0, 1).double().cpu().numpy())


def _coarse_depth(
    reference: SweepImage,
    sources: Sequence[SweepImage],
    prior: DepthPrior,
    planes: int,
    scale: float,
    device: torch.device,
) -> tuple[torch.Tensor, float]:
    """(h, w) inverse depth at a `scale` of the reference by all planes and semi-global aggregation, and their step."""
    sweep, step = _plane_sweep(reference, sources[:COARSE_SOURCES], prior, scale, device)
    far, near = prior.inverse_depth_range
    count = int(np.clip(np.ceil((near - far) / step) + 1, 8, planes))
    levels = torch.linspace(far, near, count, dtype=torch.float32, device=device)
    cost = torch.stack([sweep.cost(float(level)).clamp_(max=MAX_COST) for level in levels])
    points_cam = backproject(prior.pixels, 1 / prior.inverse_depths, reference.K)
    for normal in prior.normals_cam:
        _lower_by_slanted_planes(cost, sweep, levels, normal, points_cam, reference.K, reference.rgb.shape[:2])
    total = aggregate_planes(cost, P1, _edge_penalty(sweep.grey))
    step = float(levels[1] - levels[0])
    return levels[0] + _lowest_plane(total) * step, step


def _plane_sweep(
    reference: SweepImage,
    sources: Sequence[SweepImage],
    prior: DepthPrior,
    scale: float,
    device: torch.device,
) -> tuple[PlaneSweep, float]:
    """The sweep at a `scale` of the reference, source images reduced to its level of detail, and the step of inverse
    depth that moves the sparse points by one pixel."""
    grey, resized_from_image = _grey(reference.rgb, scale, device)
    cam_from_world = np.linalg.inv(reference.world_from_cam)
    K_ref = resized_from_image @ reference.K
    source_views: list[SourceView] = []
    for source in sources:
        source_scale = min(1.0, scale * reference.pixels_per_unit / source.pixels_per_unit)
        source_grey, resized_from_source = _grey(source.rgb, source_scale, device)
        source_from_ref = np.linalg.inv(cam_from_world @ source.world_from_cam)
        source_views.append(source_view(source_grey, K_ref, resized_from_source @ source.K, source_from_ref))
    pixels = transform_pixels(resized_from_image, prior.pixels)
    displacements = [np.median(displacement_px(view, pixels, prior.inverse_depths)) for view in source_views]
    sweep = PlaneSweep(grey, source_views, best=(len(sources) + 1) // 2, radius=WINDOW_RADIUS)
    return sweep, float(1 / max(displacements))


def _grey(rgb: np.ndarray, scale: float, device: torch.device) -> tuple[torch.Tensor, np.ndarray]:
    """(h, w) grey levels of the photo resized by about `scale`, and `resized_from_image` (3, 3) of its pixels."""
    cv2 = optional.require("cv2", "multi-view stereo")

    height, width = rgb.shape[:2]
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    if size != (width, height):
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return torch.from_numpy(grey).to(device), resize_transform(size[0] / width, size[1] / height)


def _lower_by_slanted_planes(
    cost: torch.Tensor,
    sweep: PlaneSweep,
    levels: torch.Tensor,
    normal: np.ndarray,
    points_cam: np.ndarray,
    K: np.ndarray,
    size: tuple[int, int],
) -> None:
    """Lowers `cost` (D, H, W) of fronto-parallel planes to the cost of planes that face `normal` (3,), at every pixel
    and level of the slanted plane through that depth. Windows on a floor or wall seen at a slant need it.

    Such planes are n . X = d, of inverse depth (n . r) / d along a ray r of depth 1: even steps of 1 / d.
    """
    height, width = sweep.grey.shape
    scale = resize_transform(width / size[1], height / size[0])
    rays = backproject(pixel_grid(height, width), 1.0, scale @ K)
    for n in (normal, -normal):
        offsets = points_cam @ n
        on_planes = offsets > 0.02 * points_cam[:, 2]
        if on_planes.sum() < max(MIN_PLANE_POINTS, MIN_PLANE_SHARE * len(offsets)) or abs(n[2]) > FACING:
            continue
        far, near = np.percentile(1 / offsets[on_planes], [2, 98]) * [1 - PLANE_MARGIN, 1 + PLANE_MARGIN]
        spacing = float(levels[1] - levels[0]) / np.quantile(offsets[on_planes] / points_cam[on_planes, 2], 0.75)
        count = int(np.clip(np.ceil((near - far) / spacing) + 1, 2, len(levels)))
        steps = np.linspace(far, near, count)
        slope = torch.from_numpy(rays @ n).to(cost)
        slanted = torch.stack([sweep.cost(slope * float(step)).clamp_(max=MAX_COST) for step in steps])
        usable = slope > 0.02
        slope = torch.where(usable, slope, torch.ones_like(slope))
        for level, level_cost in zip(levels, cost):
            position = (level / slope - far) / (steps[1] - steps[0])
            inside = usable & (position >= 0) & (position <= count - 1)
            position = position.clamp(0, count - 1)
            low = position.floor().long().clamp(max=count - 2)
            below, above = (slanted.gather(0, index[None])[0] for index in (low, low + 1))
            interpolated = below + (position - low) * (above - below)
            level_cost.copy_(torch.where(inside, torch.minimum(level_cost, interpolated), level_cost))


def _edge_penalty(grey: torch.Tensor) -> torch.Tensor:
    """(H, W) the penalty P2 of a depth discontinuity, lower across an image edge."""
    padded = F.pad(grey[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    gradient = (padded[1:-1, 2:] - padded[1:-1, :-2]).abs() + (padded[2:, 1:-1] - padded[:-2, 1:-1]).abs()
    return (P2 / (1 + gradient / 2 / EDGE_LEVELS)).clamp(min=2 * P1)


def _lowest_plane(total: torch.Tensor) -> torch.Tensor:
    """(H, W) the plane of lowest cost (D, H, W), between planes by a parabola."""
    index = total.argmin(0, keepdim=True)
    adjacent = [total.gather(0, (index + i).clamp(0, len(total) - 1)) for i in (-1, 0, 1)]
    inside = (index > 0) & (index < len(total) - 1)
    return (index + torch.where(inside, parabola_vertex(*adjacent), torch.zeros_like(adjacent[0])))[0]


def _refine(
    sweep: PlaneSweep, inverse_depth: torch.Tensor, step: float, reach: int, limits: tuple[float, float]
) -> torch.Tensor:
    """The best of each pixel's own depth, `reach` steps nearer and farther, and the depths of pixels around it."""
    hypotheses = [inverse_depth + i * step for i in range(-reach, reach + 1)]
    padded = F.pad(inverse_depth[None, None], (PROPAGATION_PX,) * 4, mode="replicate")[0, 0]
    height, width = inverse_depth.shape
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        y, x = (1 + dy) * PROPAGATION_PX, (1 + dx) * PROPAGATION_PX
        hypotheses.append(padded[y : y + height, x : x + width])
    stacked = torch.stack(hypotheses).clamp(*limits)
    cost = torch.stack([sweep.cost(each).clamp_(max=MAX_COST) for each in stacked])
    total = aggregate_hypotheses(cost, stacked, SLOPE_PENALTY / step, _edge_penalty(sweep.grey))
    return stacked.gather(0, total.argmin(0, keepdim=True))[0]


def _smooth_and_interpolate(
    sweep: PlaneSweep, inverse_depth: torch.Tensor, step: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse depth and cost, smoothed where the cost hardly rises, then refined between the last hypotheses."""
    cost = sweep.cost(inverse_depth)
    for _ in range(SMOOTHING_PASSES):
        smooth = smooth_planar(inverse_depth, SMOOTHING_RADIUS, SMOOTHING_STEPS * step)
        smooth_cost = sweep.cost(smooth)
        accepted = smooth_cost <= cost + SMOOTHING_TOLERANCE
        inverse_depth = torch.where(accepted, smooth, inverse_depth)
        cost = torch.where(accepted, smooth_cost, cost)
        costs = sweep.cost(inverse_depth - step), cost, sweep.cost(inverse_depth + step)
        inverse_depth = inverse_depth + parabola_vertex(*costs) * step
    inverse_depth = smooth_planar(inverse_depth, FINAL_RADIUS, SMOOTHING_STEPS / 2 * step)
    return inverse_depth, sweep.cost(inverse_depth)


def box_mean(image: torch.Tensor, radius: int) -> torch.Tensor:
    """(H, W) mean over the (2 radius + 1)^2 window, the border repeated. On a processor by OpenCV's running sums."""
    size, (height, width) = 2 * radius + 1, image.shape
    if image.device.type == "cpu":
        cv2 = optional.require("cv2", "multi-view stereo")
        kernel = np.full(size, 1 / size, image.numpy().dtype)
        return torch.from_numpy(cv2.sepFilter2D(image.numpy(), -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE))
    padded = F.pad(image[None, None], (radius,) * 4, mode="replicate")[0, 0]
    rows = padded[:height].clone()
    for i in range(1, size):
        rows += padded[i : i + height]
    total = rows[:, :width].clone()
    for i in range(1, size):
        total += rows[:, i : i + width]
    return total.div_(size * size)


def _insert_lowest(lowest: list[torch.Tensor], new: torch.Tensor, count: int) -> list[torch.Tensor]:
    """The `count` lowest values a pixel, ascending, of those so far and `new`."""
    result = []
    for value in lowest:
        result.append(torch.minimum(value, new))
        new = torch.maximum(value, new)
    return [*result, new][:count]


def parabola_vertex(left: torch.Tensor, middle: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Minimum in [-1/2, 1/2] of the parabola through the values at -1, 0 and 1; 0 where it has none."""
    curvature = left - 2 * middle + right
    shift = (left - right) / (2 * torch.where(curvature > 1e-9, curvature, torch.ones_like(curvature)))
    return torch.where(curvature > 1e-9, shift, torch.zeros_like(shift)).clamp(-0.5, 0.5)


def smooth_planar(inverse_depth: torch.Tensor, radius: int, tolerance: float) -> torch.Tensor:
    """(H, W) means over the window of those opposite pairs of pixels whose mean is within `tolerance` of the centre.

    Planes are preserved, and nothing is mixed across an edge or a crease.
    """
    height, width = inverse_depth.shape
    padded = F.pad(inverse_depth[None, None], (radius,) * 4, value=FAR_AWAY)[0, 0]
    total, count, twice = torch.zeros_like(inverse_depth), torch.zeros_like(inverse_depth), 2 * inverse_depth
    for dy in range(radius + 1):
        for dx in range(-radius if dy else 1, radius + 1):
            one, opposite = (
                padded[radius + y : radius + y + height, radius + x : radius + x + width]
                for y, x in ((dy, dx), (-dy, -dx))
            )
            difference = (one + opposite).sub_(twice)
            near = (difference.abs() <= 2 * tolerance).to(difference.dtype)
            total.addcmul_(difference, near)
            count += near
    return total.div_(count.mul_(2).add_(1)).add_(inverse_depth)
