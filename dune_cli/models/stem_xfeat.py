"""The stem part `xfeat`: XFeat's backbone without its heads (Potje et al., "XFeat", CVPR 2024; weights Apache-2.0).

Names of parameters are the published ones, so the file's tensors load unchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from dune_cli.models.stems import FrozenStem, Maps


class BasicLayer(nn.Module):
    """Convolution, batch norm without affine parameters, relu."""

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
    """`xfeat`: 24 channels at stride 4, 64 at stride 8 (the descriptor map, not normalised). It sees no colour."""

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
