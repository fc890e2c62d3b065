"""Stems of `dune-mini`: convolutional features at strides 2 to 16, for the ViT and for heads.

Three parts, alone or joined: `conv` (ours, trained from scratch; after Xiao et al., "Early convolutions help
transformers see better", NeurIPS 2021), `lite` (EfficientNet-Lite2's first stages; Tan & Le, ICML 2019; weights by
Google, Apache-2.0) and `xfeat` (XFeat's backbone without its heads; Potje et al., CVPR 2024; weights Apache-2.0). The
weights of the last two are never trained.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from dune_cli.models.efficientnet_lite import LiteNetwork
from dune_cli.models.patch_embed import HALF, IMAGENET_MEAN, IMAGENET_STD, normalise

LITE_STAGES = (0, 1, 2, 4)  # whose maps are the last at strides 2, 4, 8, 16
LITE_BLOCKS = 5  # of seven: what comes after stride 16's last map is left out

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
                normed = self.norms[key](values) if key in self.norms else values
                tokens = self.projs[key](normed)
                total = tokens if total is None else total + tokens
        assert total is not None
        return total.flatten(2).transpose(1, 2)


class LiteStem(FrozenStem):
    """`lite`: 16, 24, 48 and 120 channels at strides 2, 4, 8 and 16; the ViT gets the last two."""

    channels = {2: 16, 4: 24, 8: 48, 16: 120}  # noqa: RUF012 (a constant of the class)
    tokens_from = (8, 16)

    def __init__(self) -> None:
        super().__init__()
        self.network = LiteNetwork()
        del self.network.blocks[LITE_BLOCKS:]
        self.frozen(self)

    def forward(self, images: torch.Tensor) -> Maps:
        with torch.autocast(images.device.type, enabled=False), torch.no_grad():
            x = normalise(images.float(), HALF, HALF).contiguous(memory_format=torch.channels_last)
            maps = self.network.maps(x)
            return {stride: maps[stage] for stride, stage in zip(self.channels, LITE_STAGES)}


class BasicLayer(nn.Module):
    """Convolution, batch norm without affine parameters, relu; XFeat's names of parameters."""

    def __init__(self, channels_in: int, channels_out: int, size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, size, stride, padding=size // 2, bias=False),
            nn.BatchNorm2d(channels_out, affine=False),
            nn.ReLU(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class XFeatStem(FrozenStem):
    """`xfeat`: 24 channels at stride 4, 64 at stride 8 (the descriptor map, not normalised). Input: grey values."""

    channels = {4: 24, 8: 64}  # noqa: RUF012 (a constant of the class)
    tokens_from = (8,)

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(1)
        self.skip1 = nn.Sequential(nn.AvgPool2d(4, stride=4), nn.Conv2d(1, 24, 1))
        self.block1 = nn.Sequential(
            BasicLayer(1, 4), BasicLayer(4, 8, stride=2), BasicLayer(8, 8), BasicLayer(8, 24, stride=2)
        )
        self.block2 = nn.Sequential(BasicLayer(24, 24), BasicLayer(24, 24))
        self.block3 = nn.Sequential(BasicLayer(24, 64, stride=2), BasicLayer(64, 64), BasicLayer(64, 64, 1))
        self.block4 = nn.Sequential(BasicLayer(64, 64, stride=2), BasicLayer(64, 64), BasicLayer(64, 64))
        self.block5 = nn.Sequential(
            BasicLayer(64, 128, stride=2), BasicLayer(128, 128), BasicLayer(128, 128), BasicLayer(128, 64, 1)
        )
        self.block_fusion = nn.Sequential(BasicLayer(64, 64), BasicLayer(64, 64), nn.Conv2d(64, 64, 1))
        self.frozen(self)

    def forward(self, images: torch.Tensor) -> Maps:
        with torch.autocast(images.device.type, enabled=False), torch.no_grad():
            x = self.norm(images.float().mean(1, keepdim=True))
            quarter = self.block2(self.block1(x) + self.skip1(x))
            eighth = self.block3(quarter)
            sixteenth = self.block4(eighth)
            size = (eighth.shape[-2], eighth.shape[-1])
            coarser = [
                F.interpolate(values, size, mode="bilinear", align_corners=False)
                for values in (sixteenth, self.block5(sixteenth))
            ]
            return {4: quarter, 8: self.block_fusion(eighth + coarser[0] + coarser[1])}
