"""Bilinear samples of maps at positions between their pixels."""

from __future__ import annotations

import torch


def bilinear_corners(positions: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The four pixels around each of `positions` (..., 2), pixels (x, y) with centres at integers, and their weights.

    `last` (2,): the last pixel (x, y) of the map. Pixels (4, ..., 2) are inside the map; weights (4, ...) are 0 for
    those that had to be moved there.
    """
    base = positions.floor()
    share = positions - base
    steps = positions.new_tensor([[0, 0], [1, 0], [0, 1], [1, 1]]).view(4, *(1,) * (positions.dim() - 1), 2)
    corners = base + steps
    weights = torch.where(steps == 1, share, 1 - share).prod(-1) * ((corners >= 0) & (corners <= last)).all(-1)
    return corners.clamp(min=0).minimum(last), weights
