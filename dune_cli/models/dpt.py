"""The DPT head: four token maps to one map per pixel (docs/models/mast3r.md, "Head").

Float32, convolutions in channels_last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class DptConfig:
    """Channels of a DPT head: `inputs` of the four token maps, `levels` after their projections."""

    inputs: tuple[int, int, int, int]
    levels: tuple[int, int, int, int]
    features: int
    head_hidden: int
    head_features: int
    outputs: int
    patch: int


class PointConv2d(nn.Conv2d):
    """A 1x1 convolution, run as a matrix product over pixels (channels_last maps need no copy for it)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class ResidualUnit(nn.Module):
    """relu, 3x3, relu, 3x3, plus the input as it was before the first relu."""

    def __init__(self, channels: int, bias: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(F.relu(self.conv1(F.relu(x)), inplace=True)).add_(x)


class Fusion(nn.Module):
    """Adds a level to the path and doubles the resolution; `alone`: the coarsest level, which meets no path."""

    def __init__(self, channels: int, alone: bool, unit_bias: bool = True) -> None:
        super().__init__()
        self.unit1 = None if alone else ResidualUnit(channels, unit_bias)
        self.unit2 = ResidualUnit(channels, unit_bias)
        self.out = PointConv2d(channels, channels)

    def forward(
        self, path: torch.Tensor | None, level: torch.Tensor, size: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """path (B, C, H, W), None for the coarsest, and level (B, C, H, W) -> (B, C, *size), by default (2H, 2W).

        The 1x1 convolution stands before the bilinear upsampling, whose weights sum to 1: the two commute.
        """
        x = level if self.unit1 is None else self.unit1(level).add_(path)
        return resize(self.out(self.unit2(x)), size or (2 * x.shape[-2], 2 * x.shape[-1]))


class ChannelsLastHead(nn.Module):
    """A head of convolutions that `to_channels_last` lays out for speed."""


class DptHead(ChannelsLastHead):
    """Token maps of four depths (coarse to fine: strides 1/4, 1/2, 1, 2 of a patch) to (B, outputs, H, W)."""

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        self.config = config
        i, c = config.inputs, config.levels
        self.levels = nn.ModuleList(
            [
                nn.Sequential(PointConv2d(i[0], c[0]), nn.ConvTranspose2d(c[0], c[0], 4, 4)),
                nn.Sequential(PointConv2d(i[1], c[1]), nn.ConvTranspose2d(c[1], c[1], 2, 2)),
                nn.Sequential(PointConv2d(i[2], c[2])),
                nn.Sequential(PointConv2d(i[3], c[3]), nn.Conv2d(c[3], c[3], 3, 2, 1)),
            ]
        )
        self.reduce = nn.ModuleList(nn.Conv2d(n, config.features, 3, padding=1, bias=False) for n in c)
        self.fuse = nn.ModuleList(Fusion(config.features, alone=level == 3) for level in range(4))
        self.head = nn.Sequential(
            nn.Conv2d(config.features, config.head_hidden, 3, padding=1),
            nn.Identity(),  # the upsampling's place in the published numbering
            nn.Conv2d(config.head_hidden, config.head_features, 3, padding=1),
            nn.ReLU(inplace=True),
            PointConv2d(config.head_features, config.outputs),
        )

    def forward(self, items: Sequence[torch.Tensor], grid: tuple[int, int]) -> torch.Tensor:
        """items: four (B, N, D_i) token lists on `grid` (h, w) -> (B, outputs, h·patch, w·patch)."""
        maps = [item.transpose(1, 2).unflatten(2, grid) for item in items]  # channels_last without a copy
        levels = [reduce(level(x)) for reduce, level, x in zip(self.reduce, self.levels, maps)]
        path = None
        for index in (3, 2, 1, 0):
            height, width = levels[index].shape[-2:]
            if path is not None:
                path = path[..., :height, :width]  # an odd grid's coarsest level is half a cell larger
            path = self.fuse[index](path, levels[index])
        x = resize(self.head[0](path), tuple(n * self.config.patch for n in grid))
        return self.head[2:](x)


def resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """x (B, C, H, W) -> (B, C, *size), bilinear, `align_corners=True`."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def to_channels_last(module: nn.Module) -> None:
    """Lays out the convolutions of every head of this kind inside `module` for speed (1.6 times as fast on a CPU)."""
    for part in module.modules():
        if isinstance(part, ChannelsLastHead):
            part.to(memory_format=torch.channels_last)
