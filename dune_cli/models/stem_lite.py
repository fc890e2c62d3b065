"""The stem part `lite`: EfficientNet-Lite2's first stages (Tan & Le, ICML 2019; weights by Google, Apache-2.0)."""

from __future__ import annotations

import torch

from dune_cli.models.pixels import HALF, normalise
from dune_cli.models.stems import FrozenStem, Maps

NETWORK = "tf_efficientnet_lite2"
STAGES = (0, 1, 2, 3)  # strides 2, 4, 8, 16
BLOCKS = 5  # of seven: what comes after stride 16's last map is left out


class LiteStem(FrozenStem):
    """`lite`: 16, 24, 48 and 120 channels at strides 2, 4, 8 and 16; the ViT gets the last two."""

    channels = {2: 16, 4: 24, 8: 48, 16: 120}  # noqa: RUF012 (a constant of the class)
    tokens_from = (8, 16)

    def __init__(self) -> None:
        import timm

        super().__init__()
        self.network = timm.create_model(NETWORK, pretrained=False, features_only=True, out_indices=STAGES)
        del self.network.blocks[BLOCKS:]
        self.frozen(self)

    def forward(self, images: torch.Tensor) -> Maps:
        with torch.autocast(images.device.type, enabled=False), torch.no_grad():
            x = normalise(images.float(), HALF, HALF).contiguous(memory_format=torch.channels_last)
            return dict(zip(self.channels, self.network(x)))
