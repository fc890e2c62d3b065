"""Stems of `dune-mini`: what a convolutional network sees at strides 2 to 16, given to the ViT and to heads.

Three parts, alone or joined: `conv` (ours, trained from scratch; after Xiao et al., "Early convolutions help
transformers see better", NeurIPS 2021), `xfeat` (models/stem_xfeat.py) and `lite` (models/stem_lite.py), whose open
weights stay as they are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from dune_cli.models.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise

Maps = dict[int, torch.Tensor]


class Stem(nn.Module):
    """One part. channels: of its maps, by stride; `tokens_from`: the strides that the ViT's tokens are made of."""

    channels: dict[int, int]
    tokens_from: tuple[int, ...]

    @abstractmethod
    def forward(self, images: torch.Tensor) -> Maps:
        """images (B, 3, H, W) RGB in [0, 1], sides multiples of 16 -> maps (B, C, H/s, W/s) by stride s."""


class FrozenStem(Stem):
    """A part with open weights: never trained, batch statistics never updated, in float32 whatever the autocast."""

    def train(self, mode: bool = True) -> FrozenStem:
        return super().train(False)

    @staticmethod
    def frozen(part: FrozenStem) -> FrozenStem:
        return part.requires_grad_(False).eval()


class ConvNorm(nn.Sequential):
    """3 x 3 convolution, group norm (no batch statistics: a photo's result does not depend on its neighbours)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False), nn.GroupNorm(8, channels_out)
        )


class StemBlock(nn.Module):
    """x + conv(relu(conv(x))), each convolution followed by its norm; then relu."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels)
        self.conv2 = ConvNorm(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class ConvStem(Stem):
    """`conv`: strides 2, 4 and 8, residual blocks at 4 and 8. Normalises its images (ImageNet)."""

    tokens_from = (8,)

    def __init__(self, channels: tuple[int, int, int], blocks: tuple[int, int]) -> None:
        super().__init__()
        self.channels = dict(zip((2, 4, 8), channels))
        self.down2 = ConvNorm(3, channels[0], stride=2)
        self.down4 = ConvNorm(channels[0], channels[1], stride=2)
        self.blocks4 = nn.ModuleList(StemBlock(channels[1]) for _ in range(blocks[0]))
        self.down8 = ConvNorm(channels[1], channels[2], stride=2)
        self.blocks8 = nn.ModuleList(StemBlock(channels[2]) for _ in range(blocks[1]))

    def forward(self, images: torch.Tensor) -> Maps:
        x = normalise(images, IMAGENET_MEAN, IMAGENET_STD).contiguous(memory_format=torch.channels_last)
        half = F.relu(self.down2(x))
        quarter = F.relu(self.down4(half))
        for block in self.blocks4:
            quarter = block(quarter)
        eighth = F.relu(self.down8(quarter))
        for block in self.blocks8:
            eighth = block(eighth)
        return {2: half, 4: quarter, 8: eighth}


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map (B, C, h, w), place by place: parts of unlike scales can be joined."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ToTokens(nn.Module):
    """The parts' maps as patch tokens at stride 16: each map by a convolution of its own, all summed."""

    def __init__(self, parts: Mapping[str, Stem], width: int) -> None:
        super().__init__()
        self.norms, self.projs = nn.ModuleDict(), nn.ModuleDict()
        for name, stride, channels in self._sources(parts):
            key = f"{name}{stride}"
            if name != "conv":
                self.norms[key] = ChannelNorm(channels, 1e-6)
            self.projs[key] = nn.Conv2d(channels, width, 16 // stride, stride=16 // stride)

    @staticmethod
    def _sources(parts: Mapping[str, Stem]) -> Iterator[tuple[str, int, int]]:
        for name, part in parts.items():
            for stride in part.tokens_from:
                yield name, stride, part.channels[stride]

    def forward(self, maps: Mapping[str, Maps]) -> torch.Tensor:
        """Maps by part and stride -> tokens (B, N, D), row-major."""
        total: torch.Tensor | None = None
        for name, by_stride in maps.items():
            for stride, values in by_stride.items():
                key = f"{name}{stride}"
                if key not in self.projs:
                    continue
                seen = self.norms[key](values) if key in self.norms else values
                tokens = self.projs[key](seen)
                total = tokens if total is None else total + tokens
        assert total is not None
        return total.flatten(2).transpose(1, 2)
