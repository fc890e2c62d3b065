"""The dense heads of Depth Anything 3 (docs/models/depth-anything-3.md, "Dense head"): DPT and DualDPT. Float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli.models.dpt import ChannelsLastHead, Fusion, PointConv2d, resize

HIDDEN = 32  # channels before the last convolution
POSITION_BASE, POSITION_SCALE = 100.0, 0.1
RAY_CHANNELS = 6
VIEWS_AT_ONCE = 4  # of a head, to bound its memory
LEVELS = ("1", "2", "3", "4")  # fine to coarse, as the published names count them


@dataclass(frozen=True)
class Da3HeadConfig:
    """`inputs`: channels of the four token maps. `levels`: those after their projections. `dual`: DualDPT (depth,
    confidence and rays, with position maps), else DPT (depth and sky)."""

    inputs: int
    levels: tuple[int, int, int, int]
    features: int
    dual: bool


@dataclass(frozen=True)
class Da3Maps:
    """depth, confidence (from 1 up), sky (from 0 up): (V, H, W). rays (V, 8h, 8w, 6): direction, centre in the world;
    ray_confidence (V, 8h, 8w), from 1 up. None: this head does not predict it, or it was not asked for."""

    depth: torch.Tensor
    confidence: torch.Tensor | None = None
    sky: torch.Tensor | None = None
    rays: torch.Tensor | None = None
    ray_confidence: torch.Tensor | None = None


class Da3Head(ChannelsLastHead):
    """Four levels of tokens to dense maps."""

    def __init__(self, config: Da3HeadConfig, patch: int) -> None:
        super().__init__()
        self.config, self.patch = config, patch
        c, features, half = config.levels, config.features, config.features // 2
        self.norm = nn.LayerNorm(config.inputs, 1e-5) if config.dual else None
        self.projects = nn.ModuleList(PointConv2d(config.inputs, n) for n in c)
        self.resizes = nn.ModuleList(
            [
                nn.ConvTranspose2d(c[0], c[0], 4, 4),
                nn.ConvTranspose2d(c[1], c[1], 2, 2),
                nn.Identity(),
                nn.Conv2d(c[3], c[3], 3, 2, 1),
            ]
        )
        self.reduce = nn.ModuleDict(
            {level: nn.Conv2d(n, features, 3, padding=1, bias=False) for level, n in zip(LEVELS, c)}
        )
        self.fuse = _fusions(features)
        self.output1 = nn.Conv2d(features, half, 3, padding=1)
        self.output2 = _output(half, 2 if config.dual else 1)
        if config.dual:
            self.ray_fuse = _fusions(features)
            widths = (features, half) * 3
            self.ray_output1 = nn.Sequential(
                *(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))  # no activations between
            )
            self.ray_output2 = nn.Conv2d(half, HIDDEN, 3, padding=1)
            self.ray_norm = nn.LayerNorm(HIDDEN, 1e-5)
            self.ray_output3 = PointConv2d(HIDDEN, RAY_CHANNELS + 1)
        else:
            self.sky_output2 = _output(half, 1)

    def forward(self, levels: Sequence[torch.Tensor], grid: tuple[int, int], rays: bool = False) -> Da3Maps:
        """levels: four (V, h·w, C) of a backbone on `grid` (h, w) -> maps at h·patch × w·patch.

        `rays`: also the rays, of DualDPT.
        """
        if torch.compiler.is_exporting():  # any number of views
            return self._maps(levels, grid, rays)
        parts = [
            self._maps([level[first : first + VIEWS_AT_ONCE] for level in levels], grid, rays)
            for first in range(0, len(levels[0]), VIEWS_AT_ONCE)
        ]
        joined = {
            name: None if getattr(parts[0], name) is None else torch.cat([getattr(part, name) for part in parts])
            for name in Da3Maps.__dataclass_fields__
        }
        return Da3Maps(**joined)

    def _maps(self, tokens: Sequence[torch.Tensor], grid: tuple[int, int], rays: bool) -> Da3Maps:
        size = grid[0] * self.patch, grid[1] * self.patch
        aspect = size[1] / size[0]
        levels = {
            level: self.reduce[level](self._level(index, one, grid, aspect))
            for index, (level, one) in enumerate(zip(LEVELS, tokens))
        }
        x = resize(self.output1(_fused(self.fuse, levels)), size)
        if not self.config.dual:
            depth, sky = self.output2(x)[:, 0].exp(), F.relu(self.sky_output2(x)[:, 0])
            return Da3Maps(depth, sky=sky)
        raw = self.output2(self._placed(x, aspect))
        depth, confidence = raw[:, 0].exp(), 1 + raw[:, 1].exp()
        if not rays:
            return Da3Maps(depth, confidence)
        x = self._placed(self.ray_output1(_fused(self.ray_fuse, levels)), aspect)
        x = self.ray_norm(self.ray_output2(x).permute(0, 2, 3, 1))
        raw = self.ray_output3(F.relu(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return Da3Maps(depth, confidence, rays=raw[..., :RAY_CHANNELS], ray_confidence=1 + raw[..., RAY_CHANNELS].exp())

    def _level(self, index: int, tokens: torch.Tensor, grid: tuple[int, int], aspect: float) -> torch.Tensor:
        """tokens (V, h·w, C) -> the level's map, before its channels are reduced."""
        if self.norm is not None:
            tokens = self.norm(tokens)
        x = self.projects[index](tokens.transpose(1, 2).unflatten(2, grid))
        return self.resizes[index](self._placed(x, aspect) if self.config.dual else x)

    def _placed(self, x: torch.Tensor, aspect: float) -> torch.Tensor:
        return x + position_map(x.shape[1], (x.shape[2], x.shape[3]), aspect, x.device)


def _fusions(features: int) -> nn.ModuleDict:
    return nn.ModuleDict({level: Fusion(features, alone=level == LEVELS[-1]) for level in LEVELS})


def _output(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, HIDDEN, 3, padding=1), nn.ReLU(inplace=True), PointConv2d(HIDDEN, outputs))


def _fused(fusions: nn.ModuleDict, levels: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The levels from coarse to fine, each resized to the next one's size; the finest is doubled."""
    path = None
    for level in reversed(LEVELS):
        finer = levels.get(str(int(level) - 1))
        size = None if finer is None else (finer.shape[-2], finer.shape[-1])
        path = fusions[level](path, levels[level], size)
    assert path is not None
    return path


def position_map(channels: int, size: tuple[int, int], aspect: float, device: torch.device) -> torch.Tensor:
    """(1, channels, m, n) for a map of `size` (m, n) of an image with `aspect` = W/H.

    docs/models/depth-anything-3.md, "P": sines and cosines of each cell's centre on a plane whose diagonal is 2.
    """
    quarter = channels // 4
    omega = POSITION_BASE ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    diagonal = (aspect**2 + 1) ** 0.5
    ends = (aspect / diagonal, 1 / diagonal)
    parts = []
    for cells, end, along in zip(size[::-1], ends, ("columns", "rows")):
        centres = (2 * torch.arange(cells, dtype=torch.float64) + 1) / cells - 1
        angles = omega[:, None] * (end * centres)
        waves = torch.cat([angles.sin(), angles.cos()])
        waves = waves[:, None, :] if along == "columns" else waves[:, :, None]
        parts.append(waves.expand(-1, *size))
    return (POSITION_SCALE * torch.cat(parts))[None].to(device, torch.float32)
