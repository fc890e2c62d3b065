"""EfficientNet-Lite2 (Tan & Le, ICML 2019; google's EfficientNet-lite of 2020) with timm's names of parameters.

It is timm's `tf_efficientnet_lite2`, to the bit. dune has its own because importing timm takes 2.2 processor seconds
(it imports torchvision, and that torch's compiler), which is half of what `dune depth photo.jpg` takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
# of each stage: blocks, kernel size, stride, expansion, channels
STAGES = (
    (1, 3, 1, 1, 16),
    (3, 3, 2, 6, 24),
    (3, 5, 2, 6, 48),
    (4, 3, 2, 6, 88),
    (4, 5, 1, 6, 120),
    (5, 5, 2, 6, 208),
    (1, 3, 1, 6, 352),
)
EPSILON = 1e-3


class SameConvolution(nn.Conv2d):
    """A convolution without bias with TensorFlow's padding: the output has ceil(size / stride) rows and columns."""

    def __init__(self, channels_in: int, channels_out: int, size: int, stride: int = 1, groups: int = 1) -> None:
        padding = (size - 1) // 2 if stride == 1 else 0
        super().__init__(channels_in, channels_out, size, stride, padding, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride[0] > 1:
            rows, columns = (self._missing(size) for size in x.shape[-2:])
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return super().forward(x)

    def _missing(self, size: int) -> int:
        stride, kernel = self.stride[0], self.kernel_size[0]
        return max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)


class NormRelu6(nn.BatchNorm2d):
    """Batch norm, then relu6."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu6(super().forward(x), inplace=True)


class DepthwiseSeparable(nn.Module):
    """Depthwise convolution and one of size 1; the input is added where the sizes allow it."""

    def __init__(self, channels_in: int, channels_out: int, size: int, stride: int) -> None:
        super().__init__()
        self.adds = stride == 1 and channels_in == channels_out
        self.conv_dw = SameConvolution(channels_in, channels_in, size, stride, channels_in)
        self.bn1 = NormRelu6(channels_in)
        self.conv_pw = SameConvolution(channels_in, channels_out, 1)
        self.bn2 = nn.BatchNorm2d(channels_out, EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv_pw(self.bn1(self.conv_dw(x))))
        return out + x if self.adds else out


class InvertedResidual(nn.Module):
    """MobileNet-V2's block: expansion, depthwise convolution, projection; the input is added where the sizes allow."""

    def __init__(self, channels_in: int, channels_out: int, size: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels_in * expansion
        self.adds = stride == 1 and channels_in == channels_out
        self.conv_pw = SameConvolution(channels_in, inner, 1)
        self.bn1 = NormRelu6(inner)
        self.conv_dw = SameConvolution(inner, inner, size, stride, inner)
        self.bn2 = NormRelu6(inner)
        self.conv_pwl = SameConvolution(inner, channels_out, 1)
        self.bn3 = nn.BatchNorm2d(channels_out, EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn3(self.conv_pwl(self.bn2(self.conv_dw(self.bn1(self.conv_pw(x))))))
        return out + x if self.adds else out


class LiteNetwork(nn.Module):
    """EfficientNet-Lite2 with random weights. outputs: of the classifier; None: without what follows the stages."""

    def __init__(self, outputs: int | None = None) -> None:
        super().__init__()
        self.conv_stem = SameConvolution(3, STEM_CHANNELS, 3, 2)
        self.bn1 = NormRelu6(STEM_CHANNELS)
        stages, channels = [], STEM_CHANNELS
        for count, size, stride, expansion, channels_out in STAGES:
            blocks: list[nn.Module] = []
            for index in range(count):
                step = stride if index == 0 else 1
                if expansion == 1:
                    blocks.append(DepthwiseSeparable(channels, channels_out, size, step))
                else:
                    blocks.append(InvertedResidual(channels, channels_out, size, step, expansion))
                channels = channels_out
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        if outputs is not None:
            self.conv_head = SameConvolution(channels, HEAD_CHANNELS, 1)
            self.bn2 = NormRelu6(HEAD_CHANNELS)
            self.classifier = nn.Linear(HEAD_CHANNELS, outputs)
        _initialise(self.modules())

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, H, W) in [-1, 1] -> what each stage gives."""
        x, found = self.bn1(self.conv_stem(images)), []
        for stage in self.blocks:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> logits (B, outputs)."""
        return self.classifier(self.bn2(self.conv_head(self.maps(images)[-1])).mean((2, 3)))


def _initialise(modules: Iterable[nn.Module]) -> None:
    """As the published training: normal by fan-out for convolutions, uniform for the classifier. Not on the device
    meta, where weights are loaded into: torch draws there by its compiler, whose import takes 1.5 processor seconds."""
    for module in modules:
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            continue
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear):
            limit = 1 / math.sqrt(module.weight.shape[0])
            nn.init.uniform_(module.weight, -limit, limit)
            nn.init.zeros_(module.bias)
