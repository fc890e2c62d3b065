"""MOSAIC: semantic segmentation into ADE20K's 31 commonest classes. Wang & Howard, arXiv 2112.11623.

The MLPerf Mobile reference: a searched MobileNet backbone at output stride 16, a pooling pyramid of separable branches,
and a decoder with skips at strides 8 and 4. Google, Apache-2.0. 1.9 M parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dune_cli.models.graph import same_padding

STRIDE = 128  # image sides are multiples of this: the coarsest pyramid level pools 8 x 8 cells of stride 16
CLASSES = (
    "other", "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "window", "grass", "cabinet",
    "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water",
    "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair",
)  # fmt: skip
# what is seen outdoors; a room may show some of it through its windows
OUTDOOR_CLASSES = (
    "building", "sky", "tree", "road", "grass", "sidewalk", "earth", "mountain", "car", "water", "house", "sea",
    "field",
)  # fmt: skip
OUTDOOR_SHARE = 0.25  # of the pixels: a photo with more of the outdoor classes was taken outdoors
POOLS = (8, 4, 2)  # cells of stride 16 that a pyramid level averages over
HIGH_LEVEL = 448
PYRAMID = 128


class MosaicBlock(NamedTuple):
    """An inverted bottleneck: expanded channels, depthwise kernel, stride, dilation, output channels, residual."""

    expanded: int
    kernel: int
    stride: int
    dilation: int
    channels: int
    residual: bool


BACKBONE = (
    MosaicBlock(96, 3, 2, 1, 32, False),
    MosaicBlock(64, 3, 1, 1, 32, True),
    MosaicBlock(160, 5, 2, 1, 64, False),
    MosaicBlock(192, 3, 1, 1, 64, True),
    MosaicBlock(128, 3, 1, 1, 64, True),
    MosaicBlock(192, 3, 1, 1, 64, True),
    MosaicBlock(384, 5, 2, 1, 128, False),
    MosaicBlock(384, 3, 1, 1, 128, True),
    MosaicBlock(384, 3, 1, 1, 128, True),
    MosaicBlock(384, 3, 1, 1, 128, True),
    MosaicBlock(768, 3, 1, 1, 160, False),
    MosaicBlock(640, 3, 1, 1, 160, True),
    MosaicBlock(960, 3, 1, 1, 192, False),
    MosaicBlock(384, 5, 1, 2, 96, False),
    MosaicBlock(384, 5, 1, 2, 96, True),
    MosaicBlock(384, 5, 1, 2, 96, True),
)
SKIP_4, SKIP_8 = 1, 5  # blocks whose depthwise outputs (strides 4 and 8) the decoder takes


class MosaicOutput(NamedTuple):
    """logits (B, 32, H/4, W/4) of CLASSES; features (B, 128, H/16, W/16) of the pyramid."""

    logits: torch.Tensor
    features: torch.Tensor


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: ceil(size / stride) outputs, the odd padded pixel at the end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads = []
        for size, kernel, stride, dilation in zip(x.shape[2:], self.kernel_size, self.stride, self.dilation):
            pads = [*same_padding(size, kernel, stride, dilation), *pads]
        return super().forward(F.pad(x, pads) if any(pads) else x)


class InvertedBottleneck(nn.Module):
    """Expansion, depthwise convolution, projection. Sandler et al., MobileNetV2, arXiv 1801.04381."""

    def __init__(self, channels_in: int, block: MosaicBlock) -> None:
        super().__init__()
        self.residual = block.residual
        self.expand = SameConv2d(channels_in, block.expanded, 1)
        self.depthwise = SameConv2d(
            block.expanded, block.expanded, block.kernel, block.stride, dilation=block.dilation, groups=block.expanded
        )
        self.project = SameConv2d(block.expanded, block.channels, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The block's output and its depthwise output."""
        inner = F.relu(self.depthwise(F.relu(self.expand(x))))
        out = self.project(inner)
        return (x + out if self.residual else out), inner


class PyramidBranch(nn.Module):
    """Half of the channels through a 3x3, half through a 5x5 separable convolution."""

    def __init__(self) -> None:
        super().__init__()
        half = HIGH_LEVEL // 2
        self.depthwise3, self.pointwise3 = SameConv2d(half, half, 3, groups=half), SameConv2d(half, 64, 1)
        self.depthwise5, self.pointwise5 = SameConv2d(half, half, 5, groups=half), SameConv2d(half, 64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=1)
        first = F.relu(self.pointwise3(F.relu(self.depthwise3(first))))
        second = F.relu(self.pointwise5(F.relu(self.depthwise5(second))))
        return torch.cat([first, second], 1)


class Mosaic(nn.Module):
    """The network; batch normalisation is folded into the convolutions, as in the published file."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv2d(3, 32, 3, 2)
        widths = (32, *(block.channels for block in BACKBONE))
        self.backbone = nn.ModuleList(InvertedBottleneck(width, block) for width, block in zip(widths, BACKBONE))
        self.high_level = SameConv2d(BACKBONE[-1].channels, HIGH_LEVEL, 1)
        self.skip4 = SameConv2d(BACKBONE[SKIP_4].expanded, len(CLASSES), 1)
        self.pyramid = nn.ModuleList(PyramidBranch() for _ in POOLS)
        self.merge = SameConv2d(128 * len(POOLS) + HIGH_LEVEL, PYRAMID, 1)
        self.decode = SameConv2d(PYRAMID + BACKBONE[SKIP_8].expanded, 64, 1)
        self.refine = SameConv2d(64, 64, 3, groups=64)
        self.classify = SameConv2d(64, len(CLASSES), 1)

    def forward(self, images: torch.Tensor) -> MosaicOutput:
        """images (B, 3, H, W) RGB in [0, 1], sides multiples of 128 (trained at 512 x 512).

        Raises ValueError for other sides.
        """
        height, width = images.shape[-2:]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"images are {height} x {width} px; the sides must be multiples of {STRIDE}")
        x = F.relu(self.stem(images * 2 - 1))
        inner = []
        for block in self.backbone:
            x, depthwise = block(x)
            inner.append(depthwise)
        high = F.relu(self.high_level(x))
        levels = [enlarge(branch(F.avg_pool2d(high, pool)), pool) for pool, branch in zip(POOLS, self.pyramid)]
        features = F.relu(self.merge(torch.cat([*levels, high], 1)))
        x = F.relu(self.decode(torch.cat([enlarge(features, 2), inner[SKIP_8]], 1)))
        x = F.relu(self.classify(F.relu(self.refine(x))))
        return MosaicOutput(F.relu(self.skip4(inner[SKIP_4])) + enlarge(x, 2), features)

    def convolutions(self) -> list[nn.Conv2d]:
        """All convolutions in the order in which the published file holds them."""
        blocks = [part for block in self.backbone for part in (block.expand, block.depthwise, block.project)]
        branches = [
            part
            for branch in self.pyramid
            for part in (branch.depthwise3, branch.pointwise3, branch.depthwise5, branch.pointwise5)
        ]
        tail = [self.merge, self.decode, self.refine, self.classify]
        return [self.stem, *blocks, self.high_level, self.skip4, *branches, *tail]


def enlarge(x: torch.Tensor, factor: int) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, factor·H, factor·W), bilinear with TensorFlow 1's sampling: output i reads input i/factor.

    Beyond the last input pixel its value is repeated.
    """
    for dim in (2, 3):
        size = x.shape[dim]
        place = torch.arange(size * factor, device=x.device) / factor
        first = place.long()
        second = (first + 1).clamp(max=size - 1)
        weight = (place - first).to(x.dtype).view(-1, 1) if dim == 2 else (place - first).to(x.dtype)
        x = torch.lerp(x.index_select(dim, first), x.index_select(dim, second), weight)
    return x


def is_outdoor(logits: torch.Tensor, names: Sequence[str]) -> bool:
    """Class logits (C, h, w) of a photo -> whether more than OUTDOOR_SHARE of it is of OUTDOOR_CLASSES."""
    numbers = [index for index, name in enumerate(names) if name in OUTDOOR_CLASSES]
    return bool(np.isin(logits.argmax(0).cpu().numpy(), numbers).mean() > OUTDOOR_SHARE)
