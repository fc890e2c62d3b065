"""Depth from single images: DINOv2's heads on their encoder, and a two-view model on an image paired with itself."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli.models.dinov2_heads import Dinov2DptHead, LinearDepthHead
from dune_cli.models.mast3r import TwoViewModel
from dune_cli.models.patch_embed import pad_to_patches
from dune_cli.models.vit import VisionTransformer
from dune_cli.provenance import Source


class HeadDepth(nn.Module):
    """An encoder and a depth head (docs/models/dinov2-heads.md, "Depth").

    Runs where its weights are, without gradients once loaded.

    `blocks`: which blocks the head reads, counted from 0. `minimum`, `maximum`: the range of depth in metres.
    """

    source = Source("none")

    def __init__(
        self,
        encoder: VisionTransformer,
        head: LinearDepthHead | Dinov2DptHead,
        blocks: tuple[int, ...],
        minimum: float,
        maximum: float,
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.blocks = encoder, head, blocks
        self.minimum, self.maximum = minimum, maximum

    @property
    def sources(self) -> list[Source]:
        """The weights behind a result: the head's and the encoder's."""
        return [self.source, self.encoder.source]

    def raw(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) RGB in [0, 1] -> what the head gives for the padded image, before the clamp."""
        padded = pad_to_patches(images, self.encoder.patch)
        return self.head(self.encoder.intermediate(padded, self.blocks, norm=False))

    def forward(self, images: torch.Tensor, flip: bool = False) -> torch.Tensor:
        """images (B, 3, H, W) RGB in [0, 1], any sides -> depth z (B, H, W) in metres.

        `flip`: the mean with the mirrored prediction of the mirrored image. ValueError for another shape.
        """
        if flip:
            return (self(images) + self(images.flip(-1)).flip(-1)) / 2
        depth = self.raw(images).clamp(self.minimum, self.maximum)
        return F.interpolate(depth[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


class TwoViewDepth(nn.Module):
    """A two-view model that sees an image twice: its first point map lies in that image's own camera."""

    source = Source("none")

    def __init__(self, model: TwoViewModel) -> None:
        super().__init__()
        self.model = model

    @property
    def sources(self) -> list[Source]:
        """The weights behind a result."""
        return [self.source]

    def points(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """images (B, 3, H, W), sides multiples of the patch -> points (B, H, W, 3) in metres, confidence (B, H, W).

        Raises ValueError with the sizes when a side is no patch multiple.
        """
        model = self.model
        view = model.encode(images)
        items, _ = model.decoder(view.tokens, view.grid, view.tokens, view.grid, model.hooks)
        seen = model.head1(items, model.hooks, view.grid, descriptors=False, points=True)
        return seen.points, seen.confidence

    def forward(self, images: torch.Tensor, flip: bool = False) -> torch.Tensor:
        """images (B, 3, H, W) RGB in [0, 1], any sides -> depth z (B, H, W) in metres.

        Images whose sides are patch multiples up to the model's standard size are seen as they are; others are resized
        to the nearest such sides (bilinear, antialiased) and the depth back. `flip`: the mean with the mirrored
        prediction of the mirrored image.
        """
        if flip:
            return (self(images) + self(images.flip(-1)).flip(-1)) / 2
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"images must be (B, 3, H, W), RGB in [0, 1]; received {tuple(images.shape)}")
        size, seen = tuple(images.shape[-2:]), self._seen_size(*images.shape[-2:])
        if size == seen:
            return self.points(images)[0][..., 2]
        small = F.interpolate(images.float(), size=seen, mode="bilinear", align_corners=False, antialias=True)
        depth = self.points(small.clamp(0, 1))[0][..., 2]
        return F.interpolate(depth[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]

    def _seen_size(self, height: int, width: int) -> tuple[int, int]:
        patch = self.model.patch
        scale = min(1.0, self.model.size / max(height, width))
        return tuple(max(1, round(side * scale / patch)) * patch for side in (height, width))
