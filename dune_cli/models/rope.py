"""Two-dimensional rotary position embedding (spec 3, "MASt3R's own encoder")."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rotation:
    """Angles of a grid's N tokens for heads of d channels: cos and (signed) sin, each (N, 1, d)."""

    cos: torch.Tensor
    sin: torch.Tensor


def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotates x (B, N, heads, d): `x·cos + rot(x)·sin`, rot = (-x2, x1) inside each half of the channels."""
    y = x.to(rotation.cos.dtype)
    swapped = y.unflatten(-1, (2, 2, x.shape[-1] // 4)).flip(-2).flatten(-3)
    return (y * rotation.cos).add_(swapped.mul_(rotation.sin)).to(x.dtype)


class Rope2d:
    """Builds and keeps the rotation of each grid size: first half of a head's channels by row, second by column.

    Inside a half of width d/2 the frequencies are base^(-2i/(d/2)), repeated twice.
    """

    def __init__(self, head_width: int, base: float) -> None:
        if head_width % 4:
            raise ValueError(f"2-D RoPE needs a head width that is a multiple of 4, not {head_width}")
        self.head_width, self.base = head_width, base
        self._kept: dict[tuple[int, int, torch.device, torch.dtype], Rotation] = {}

    def __call__(self, grid: tuple[int, int], device: torch.device, dtype: torch.dtype = torch.float32) -> Rotation:
        """The rotation for a grid (h, w), row-major, positions counted from 0."""
        key = (*grid, device, dtype)
        if key not in self._kept:
            with torch.inference_mode(False):
                self._kept[key] = self._build(grid, device, dtype)
        return self._kept[key]

    def _build(self, grid: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Rotation:
        half = self.head_width // 2
        frequency = self.base ** (-torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)
        rows, columns = (torch.arange(n, dtype=torch.float32, device=device) for n in grid)
        angles = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2, 1) * frequency
        sign = torch.tensor([-1.0, 1.0], device=device)[:, None]
        cos = angles.cos()[:, :, None].expand(-1, 2, 2, -1).flatten(1)
        sin = (angles.sin()[:, :, None] * sign).flatten(1)
        return Rotation(cos[:, None].to(dtype), sin[:, None].to(dtype))
