"""Classes of images: an encoder with DINOv2's ImageNet head (spec 7, "ImageNet")."""

from __future__ import annotations

import torch
from torch import nn

from dune_cli.models.dinov2_linear import LinearClassifier
from dune_cli.models.vit import VisionTransformer
from dune_cli.provenance import Source


class Classifier(nn.Module):
    """An encoder and a linear classifier on its last blocks. Runs where its weights are, no gradients once loaded."""

    source = Source("none")

    def __init__(self, encoder: VisionTransformer, head: LinearClassifier, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder, self.head, self.blocks = encoder, head, blocks

    @property
    def sources(self) -> list[Source]:
        """The weights behind a result: the head's and the encoder's."""
        return [self.source, self.encoder.source]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.head.project.out_features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) RGB in [0, 1] -> logits (B, classes). ValueError when a side is no patch multiple."""
        return self.head(self.encoder.intermediate(images, self.blocks, norm=True))
