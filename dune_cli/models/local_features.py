"""The descriptor head: an MLP per token and a pixel shuffle (spec 3, "Local features"). Float32."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class LocalFeatures(nn.Module):
    """Encoder and decoder tokens, concatenated, to `channels` values a pixel."""

    def __init__(self, inputs: int, hidden: int, channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, channels * patch * patch)

    def forward(self, first: torch.Tensor, last: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """first (B, N, E), last (B, N, D) -> (B, h·patch, w·patch, channels)."""
        x = self.fc2(F.gelu(self.fc1(torch.cat([first, last], -1))))
        p = self.patch
        cells = x.unflatten(-1, (-1, p, p)).unflatten(1, grid)  # (B, h, w, C, p, p)
        return cells.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2)
