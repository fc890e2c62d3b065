"""FastDepth: metric depth of rooms. Wofk et al., "FastDepth", ICRA 2019, arXiv 1903.03273; the pruned network.

MobileNet (14 stages) and the decoder NNConv5 (five 5x5 separable convolutions, each followed by nearest-neighbour
upsampling) with additive skip connections. Trained on NYU Depth v2. 1.35 M parameters.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

STRIDE = 32  # image sides are multiples of this
STEM = 16
ENCODER = (56, 88, 120, 144, 256, 408, 376, 272, 288, 296, 328, 480, 512)  # channels after pruning
ENCODER_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
DECODER = (200, 256, 120, 56, 16)
SKIPS = (None, 4, 2, 0, None)  # the encoder stage that is added after each decoder stage's upsampling


class FastDepthOutput(NamedTuple):
    """depth (B, H, W) in metres; features (B, 16, H/2, W/2), the last decoder stage before its upsampling."""

    depth: torch.Tensor
    features: torch.Tensor


class Separable(nn.Module):
    """A depthwise convolution and a pointwise one, each with a bias and an activation; zero padding of kernel // 2."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, activation: nn.Module) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels_in, channels_in, kernel, stride, kernel // 2, groups=channels_in)
        self.pointwise = nn.Conv2d(channels_in, channels_out, 1)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.pointwise(self.activation(self.depthwise(x))))


class FastDepth(nn.Module):
    """The network; batch normalisation is folded into the convolutions, as in the published file."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, STEM, 3, 2, 1)
        widths = (STEM, *ENCODER)
        self.encoder = nn.ModuleList(
            Separable(a, b, 3, stride, nn.ReLU6()) for a, b, stride in zip(widths, ENCODER, ENCODER_STRIDES)
        )
        widths = (ENCODER[-1], *DECODER)
        self.decoder = nn.ModuleList(Separable(a, b, 5, 1, nn.ReLU()) for a, b in zip(widths, DECODER))
        self.head = nn.Conv2d(DECODER[-1], 1, 1)

    def forward(self, images: torch.Tensor) -> FastDepthOutput:
        """images (B, 3, H, W) RGB in [0, 1], sides multiples of 32 (trained at 224 x 224).

        Raises ValueError for other sides.
        """
        height, width = images.shape[-2:]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"images are {height} x {width} px; the sides must be multiples of {STRIDE}")
        x = F.relu6(self.stem(images))
        stages = []
        for stage in self.encoder:
            x = stage(x)
            stages.append(x)
        features = x
        for stage, skip in zip(self.decoder, SKIPS):
            features = stage(x)
            x = F.interpolate(features, scale_factor=2)
            if skip is not None:
                x = x + stages[skip]
        return FastDepthOutput(F.relu(self.head(x))[:, 0], features)

    def convolutions(self) -> list[nn.Conv2d]:
        """All convolutions in the order in which they run, which is that of the published file."""
        pairs = [part for stage in (*self.encoder, *self.decoder) for part in (stage.depthwise, stage.pointwise)]
        return [self.stem, *pairs, self.head]
