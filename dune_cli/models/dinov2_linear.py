"""DINOv2's linear heads for depth, classification and segmentation (spec 7). Float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli.models.tokens import Tokens


class LinearDepthHead(nn.Module):
    """Tokens of one block or four, before the final norm, to metres: an expectation over equally spaced depth bins."""

    def __init__(self, width: int, blocks: int, bins: int, minimum: float, maximum: float) -> None:
        super().__init__()
        self.width, self.minimum, self.maximum = width, minimum, maximum
        self.project = nn.Conv2d(2 * width * blocks, bins, 1)

    def forward(self, blocks: Sequence[Tokens]) -> torch.Tensor:
        """Tokens of the blocks, in order, on grid (h, w) -> raw depth (B, 4h, 4w).

        The 1x1 convolution stands before the bilinear upsampling, whose weights sum to 1: the two commute. The CLS
        token, repeated over the map in the published code, adds one value a channel.
        """
        weights = self.project.weight.flatten(1).split(self.width, 1)
        scores = self.project.bias
        for index, tokens in enumerate(blocks):
            of_patches, of_cls = weights[2 * index : 2 * index + 2]
            scores = scores + F.linear(tokens.patches, of_patches) + F.linear(tokens.cls, of_cls)[:, None]
        scores = scores.transpose(1, 2).unflatten(2, blocks[0].grid)
        scores = F.interpolate(scores, scale_factor=4, mode="bilinear", align_corners=False)
        weight = F.relu(scores) + 0.1
        depths = torch.linspace(self.minimum, self.maximum, weight.shape[1], device=weight.device)
        return torch.einsum("bkhw,k->bhw", weight, depths) / weight.sum(1)


class LinearClassifier(nn.Module):
    """CLS tokens of the last blocks and the mean of the last block's patch tokens, after the final norm, to logits."""

    def __init__(self, width: int, blocks: int, classes: int) -> None:
        super().__init__()
        self.project = nn.Linear(width * (blocks + 1), classes)

    def forward(self, blocks: Sequence[Tokens]) -> torch.Tensor:
        """Tokens of the blocks, in order -> logits (B, classes)."""
        parts = [tokens.cls for tokens in blocks]
        return self.project(torch.cat([*parts, blocks[-1].patches.mean(1)], 1))


class FrozenBatchNorm(nn.Module):
    """Batch normalisation of (B, N, C) with stored statistics."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return (x - self.running_mean) * scale + self.bias


class LinearSegmentationHead(nn.Module):
    """Patch tokens of one block or four, after the final norm, to class logits a patch."""

    def __init__(self, width: int, blocks: int, classes: int) -> None:
        super().__init__()
        self.bn = FrozenBatchNorm(width * blocks)
        self.project = nn.Conv2d(width * blocks, classes, 1)

    def forward(self, blocks: Sequence[Tokens]) -> torch.Tensor:
        """Tokens of the blocks, in order, on grid (h, w) -> logits (B, classes, h, w)."""
        x = self.bn(torch.cat([tokens.patches for tokens in blocks], 2))
        x = F.linear(x, self.project.weight.flatten(1), self.project.bias)
        return x.transpose(1, 2).unflatten(2, blocks[0].grid)
