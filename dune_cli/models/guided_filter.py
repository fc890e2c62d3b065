"""Edges of a coarse map sharpened by the photo: the guided filter. K. He and J. Sun, "Fast Guided Filter", 2015.

In a window around each pixel the map is a linear function of the photo's colour; its coefficients are fitted on the
coarse grid and applied to the photo at its own size.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def guided_upsample(
    coarse: torch.Tensor, guide: torch.Tensor, radius: int = 2, eps: float = 1e-3, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """coarse (B, C, h, w), guide (B, 3, H, W) RGB in [0, 1] -> (B, C, H, W).

    radius: of the window, in coarse cells. eps: variance of colour below which the map is smoothed. mask (B, 1, h, w):
    weights of the coarse cells; None: all alike.
    """
    small = F.interpolate(guide, size=coarse.shape[-2:], mode="area")
    weight = torch.ones_like(small[:, :1]) if mask is None else mask.to(small.dtype)
    total = _box(weight, radius).clamp(min=1e-6)

    def mean(x: torch.Tensor) -> torch.Tensor:
        return _box(x * weight, radius) / total

    mean_guide, mean_map = mean(small), mean(coarse)
    pairs = [(i, j) for i in range(3) for j in range(3)]
    covariance = torch.stack([mean(small[:, i : i + 1] * small[:, j : j + 1]) for i, j in pairs], -1)
    covariance = covariance[:, 0].unflatten(-1, (3, 3))
    centre = mean_guide.permute(0, 2, 3, 1)
    covariance = covariance - centre[..., :, None] * centre[..., None, :] + eps * torch.eye(3, device=coarse.device)
    joint = torch.stack([mean(small[:, i : i + 1] * coarse) for i in range(3)], -1)  # (B, C, h, w, 3)
    joint = joint - mean_map[..., None] * centre[:, None]
    whole = covariance[:, None].expand(-1, coarse.shape[1], -1, -1, -1, -1)
    slope = torch.linalg.solve(whole, joint[..., None])[..., 0]
    offset = mean_map - (slope * centre[:, None]).sum(-1)
    # each pixel takes the mean of the windows that it lies in
    count = _box(torch.ones_like(weight), radius)
    slope = torch.stack([_box(slope[..., i], radius) for i in range(3)], 2) / count[:, None]
    offset = _box(offset, radius) / count
    size = guide.shape[-2:]
    slope = F.interpolate(slope.flatten(1, 2), size=size, mode="bilinear", align_corners=False).unflatten(1, (-1, 3))
    offset = F.interpolate(offset, size=size, mode="bilinear", align_corners=False)
    return (slope * guide[:, None]).sum(2) + offset


def _box(x: torch.Tensor, radius: int) -> torch.Tensor:
    """Sums over squares of side 2 · radius + 1, cut at the border."""
    side = 2 * radius + 1
    return F.avg_pool2d(x, side, 1, radius, count_include_pad=True) * side**2
