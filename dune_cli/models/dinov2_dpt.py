"""DINOv2's DPT depth head (spec 7, "Depth"): four blocks' tokens to metres. Float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli.models.dpt import Fusion
from dune_cli.models.tokens import Tokens


@dataclass(frozen=True)
class Dinov2DptConfig:
    """Channels: `width` of the tokens, `levels` of the four maps (finest first), then of the fusion and the head."""

    width: int
    levels: tuple[int, int, int, int]
    features: int
    head_hidden: int
    head_features: int


class Dinov2DptHead(nn.Module):
    """Tokens of four blocks, before the final norm, to raw depth.

    Differs from the two-view model's DPT in the readout of the CLS token, in units without bias, and in odd grids,
    where the level is resized to the path (there the path is cropped to the level).
    """

    def __init__(self, config: Dinov2DptConfig, minimum: float) -> None:
        super().__init__()
        self.config, self.minimum = config, minimum
        width, c, features = config.width, config.levels, config.features
        self.readouts = nn.ModuleList(nn.Linear(2 * width, width) for _ in c)
        self.projects = nn.ModuleList(nn.Conv2d(width, channels, 1) for channels in c)
        self.resizes = nn.ModuleList(
            [
                nn.ConvTranspose2d(c[0], c[0], 4, 4),
                nn.ConvTranspose2d(c[1], c[1], 2, 2),
                nn.Identity(),
                nn.Conv2d(c[3], c[3], 3, 2, 1),
            ]
        )
        self.reduce = nn.ModuleList(nn.Conv2d(channels, features, 3, padding=1, bias=False) for channels in c)
        self.fuse = nn.ModuleList(Fusion(features, alone=step == 0, unit_bias=False) for step in range(4))
        self.project = nn.Conv2d(features, features, 3, padding=1)
        self.head = nn.Sequential(
            nn.Conv2d(features, config.head_hidden, 3, padding=1),
            nn.Identity(),  # the upsampling's place in the published numbering
            nn.Conv2d(config.head_hidden, config.head_features, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(config.head_features, 1, 1),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, blocks: Sequence[Tokens]) -> torch.Tensor:
        """Four blocks' Tokens on grid (h, w) -> raw depth (B, 32·ceil(h/2), 32·ceil(w/2)) from the minimum up."""
        levels = [self._level(index, tokens) for index, tokens in enumerate(blocks)]
        path = None
        for fuse, level in zip(self.fuse, reversed(levels)):
            if path is not None and level.shape[-2:] != path.shape[-2:]:
                level = F.interpolate(level, size=path.shape[-2:], mode="bilinear", align_corners=False)
            path = fuse(path, level)
        x = self.head[0](F.relu(self.project(path)))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return F.relu(self.head[2:](x))[:, 0] + self.minimum

    def _level(self, index: int, tokens: Tokens) -> torch.Tensor:
        readout = self.readouts[index]
        of_patches, of_cls = readout.weight.split(self.config.width, 1)
        x = F.linear(tokens.patches, of_patches) + F.linear(tokens.cls, of_cls, readout.bias)[:, None]
        x = F.gelu(x).transpose(1, 2).unflatten(2, tokens.grid)
        return self.reduce[index](self.resizes[index](self.projects[index](x)))
