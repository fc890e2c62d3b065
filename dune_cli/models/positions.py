"""Position embeddings on another grid than the trained one: the two policies of spec 1."""

from __future__ import annotations

import torch
from torch.nn import functional as F

OFFSET = 0.1


def resample(pos_embed: torch.Tensor, grid: tuple[int, int], policy: str) -> torch.Tensor:
    """pos_embed (1, 1 + M², D) -> (1, 1 + h·w, D) in float32; the CLS position is kept.

    `policy` is "offset" or "antialias" (see VitConfig). Nothing is resampled for the native M x M grid.
    """
    side = round((pos_embed.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return pos_embed
    cls, patches = pos_embed.float().split([1, side * side], 1)
    cells = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if policy == "antialias":
        cells = F.interpolate(cells, size=grid, mode="bicubic", align_corners=False, antialias=True)
    elif policy == "offset":
        cells = _by_factor(cells, grid, ((grid[0] + OFFSET) / side, (grid[1] + OFFSET) / side))
    else:
        raise ValueError(f"unknown position policy {policy!r}; allowed: offset, antialias")
    return torch.cat([cls, cells.flatten(2).transpose(1, 2)], 1)


def _by_factor(cells: torch.Tensor, grid: tuple[int, int], factor: tuple[float, float]) -> torch.Tensor:
    """Bicubic resampling that samples with `factor` itself, not with one recomputed from the sizes."""
    out = F.interpolate(cells, scale_factor=factor, mode="bicubic", align_corners=False, recompute_scale_factor=False)
    if tuple(out.shape[-2:]) != grid:
        raise AssertionError(f"resampling gave {tuple(out.shape[-2:])} cells instead of {grid}")
    return out
