"""What an encoder gives: tokens on a grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tokens:
    """Tokens of a batch of B images.

    cls (B, D), registers (B, R, D) with R = 0 where there are none, patches (B, N, D) in row-major order over
    grid = (h, w), N = h·w. All float32.
    """

    cls: torch.Tensor
    registers: torch.Tensor
    patches: torch.Tensor
    grid: tuple[int, int]

    def map(self) -> torch.Tensor:
        """The patch tokens as a map (B, h, w, D)."""
        return self.patches.unflatten(1, self.grid)
