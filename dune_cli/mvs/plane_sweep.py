"""How well views agree at hypothetical depths: plane sweeps by normalised cross-correlation, in torch, any device.

A plane sweep (R. Collins, "A space-sweep approach to true multi-image matching", CVPR 1996) compares windows around a
pixel with what neighbours see along its ray. Here a hypothesis is a map of inverse depths, not one number: windows then
follow whatever surface the map describes, a plane parallel to the image or a slanted one found earlier (D. Gallup et
al., "Real-time plane-sweeping stereo with multiple sweeping directions", CVPR 2007).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

NOISE_LEVELS = 2.0  # grey levels of 255: windows with less contrast match nothing well
OUTSIDE = 1.0  # the cost of what a neighbour does not see: as if uncorrelated


@dataclass(frozen=True)
class Neighbour:
    """Another view: `grey` (h, w) in [0, 255] and where the reference's pixels fall in it.

    A pixel (x, y) at inverse depth i lands at the homogeneous `rotation` @ (x, y, 1) + i * `translation`:
    K_other R K_ref^-1 (3, 3) and K_other t (3,) of `other_from_ref`.
    """

    grey: torch.Tensor
    rotation: np.ndarray
    translation: np.ndarray


def neighbour(grey: torch.Tensor, K_ref: np.ndarray, K_other: np.ndarray, other_from_ref: np.ndarray) -> Neighbour:
    """A `Neighbour` from intrinsics (3, 3) of the images at hand and the pose (4, 4)."""
    rotation = K_other @ other_from_ref[:3, :3] @ np.linalg.inv(K_ref)
    return Neighbour(grey, rotation, K_other @ other_from_ref[:3, 3])


def displacement_px(view: Neighbour, pixels: np.ndarray, inverse_depth: np.ndarray) -> np.ndarray:
    """(M,) pixels that the images of `pixels` (M, 2) at `inverse_depth` (M,) move in a neighbour for one unit more."""
    homogeneous = np.concatenate([pixels, np.ones_like(pixels[:, :1])], axis=1)
    at = homogeneous @ view.rotation.T + inverse_depth[:, None] * view.translation
    move = (view.translation[:2] * at[:, 2:] - at[:, :2] * view.translation[2]) / at[:, 2:] ** 2
    return np.linalg.norm(move, axis=1)


class Sweep:
    """The costs of depth hypotheses for one reference view and its neighbours.

    `grey` (H, W) in [0, 255], float32 or float64; `best` of the neighbours count at a pixel (their mean), so that those
    from which it is hidden do not (S. B. Kang, R. Szeliski and J. Chai, "Handling occlusions in dense multi-view
    stereo", CVPR 2001). `radius` of the square window. Memory: 4 maps a neighbour and about 12 more.
    """

    def __init__(self, grey: torch.Tensor, neighbours: Sequence[Neighbour], best: int, radius: int) -> None:
        self.grey, self.best, self.radius = grey, min(best, len(neighbours)), radius
        self.mean = box_mean(grey, radius)
        self.variance = (box_mean(grey * grey, radius) - self.mean**2).clamp(min=0) + NOISE_LEVELS**2
        height, width = grey.shape
        y, x = torch.meshgrid(
            torch.arange(height, dtype=grey.dtype, device=grey.device),
            torch.arange(width, dtype=grey.dtype, device=grey.device),
            indexing="ij",
        )
        self.views = []
        for view in neighbours:
            # in grid_sample's units, where -1 and 1 are the image's outer edges
            h, w = view.grey.shape
            to_grid = np.array([[2 / w, 0, 1 / w - 1], [0, 2 / h, 1 / h - 1], [0, 0, 1]])
            r, t = (to_grid @ view.rotation).tolist(), (to_grid @ view.translation).tolist()
            rays = [row[0] * x + row[1] * y + row[2] for row in r]
            self.views.append((view.grey[None, None], rays, t))

    def cost(self, inverse_depth: torch.Tensor | float) -> torch.Tensor:
        """(H, W) 1 - correlation in [0, 2], of the hypothesis `inverse_depth`: a number or a map (H, W)."""
        lowest: list[torch.Tensor] = []
        for grey, rays, shift in self.views:
            lowest = _insert(lowest, self._one(grey, rays, shift, inverse_depth), self.best)
        return lowest[0] if len(lowest) == 1 else sum(lowest[1:], lowest[0]) / len(lowest)

    def _one(
        self,
        grey: torch.Tensor,
        rays: list[torch.Tensor],
        shift: list[float],
        inverse_depth: torch.Tensor | float,
    ) -> torch.Tensor:
        depth = rays[2] + inverse_depth * shift[2]
        reciprocal = 1 / torch.where(depth > 1e-6, depth, torch.full_like(depth, torch.inf))
        x = (rays[0] + inverse_depth * shift[0]) * reciprocal
        y = (rays[1] + inverse_depth * shift[1]) * reciprocal
        seen = (depth > 1e-6) & (x.abs() < 1) & (y.abs() < 1)
        warped = F.grid_sample(grey, torch.stack([x, y], -1)[None], padding_mode="border", align_corners=False)[0, 0]
        mean = box_mean(warped, self.radius)
        variance = (box_mean(warped * warped, self.radius) - mean**2).clamp(min=0) + NOISE_LEVELS**2
        covariance = box_mean(warped * self.grey, self.radius) - mean * self.mean
        cost = 1 - covariance * torch.rsqrt(variance * self.variance)
        return torch.where(seen, cost, torch.full_like(cost, OUTSIDE))


def box_mean(image: torch.Tensor, radius: int) -> torch.Tensor:
    """(H, W) mean over the (2 radius + 1)^2 window, the border repeated."""
    padded = F.pad(image[None, None], (radius,) * 4, mode="replicate")[0, 0]
    size, (height, width) = 2 * radius + 1, image.shape
    rows = padded[:height].clone()
    for i in range(1, size):
        rows += padded[i : i + height]
    total = rows[:, :width].clone()
    for i in range(1, size):
        total += rows[:, i : i + width]
    return total.div_(size * size)


def _insert(lowest: list[torch.Tensor], new: torch.Tensor, count: int) -> list[torch.Tensor]:
    """The `count` lowest values a pixel, ascending, of those so far and `new`."""
    result = []
    for kept in lowest:
        result.append(torch.minimum(kept, new))
        new = torch.maximum(kept, new)
    return [*result, new][:count]


def vertex(left: torch.Tensor, middle: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Where between -1/2 and 1/2 the parabola through values at -1, 0, 1 is lowest; 0 where it has no lowest point."""
    curvature = left - 2 * middle + right
    shift = (left - right) / (2 * torch.where(curvature > 1e-9, curvature, torch.ones_like(curvature)))
    return torch.where(curvature > 1e-9, shift, torch.zeros_like(shift)).clamp(-0.5, 0.5)


def smoothed(inverse_depth: torch.Tensor, radius: int, tolerance: float) -> torch.Tensor:
    """(H, W) means over the window of those opposite pairs of pixels whose mean differs from the centre by at most
    `tolerance`: planes stay as they are, and nothing is mixed across an edge or a crease."""
    height, width = inverse_depth.shape
    padded = F.pad(inverse_depth[None, None], (radius,) * 4, value=torch.inf)[0, 0]
    total, count = inverse_depth.clone(), torch.ones_like(inverse_depth)
    for dy in range(radius + 1):
        for dx in range(-radius if dy else 1, radius + 1):
            here, opposite = (
                padded[radius + y : radius + y + height, radius + x : radius + x + width]
                for y, x in ((dy, dx), (-dy, -dx))
            )
            mean = (here + opposite) / 2
            near = (mean - inverse_depth).abs() <= tolerance
            total += torch.where(near, 2 * mean, torch.zeros_like(mean))
            count += 2 * near
    return total / count
