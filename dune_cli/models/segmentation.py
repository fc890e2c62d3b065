"""Classes of pixels: an encoder with a linear segmentation head, its windows and scales (spec 7, "Segmentation")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli.models.dinov2_linear import LinearSegmentationHead
from dune_cli.models.padding import pad_to_patches
from dune_cli.models.vit import VisionTransformer
from dune_cli.provenance import Source

WINDOWS_AT_ONCE = 4


@dataclass(frozen=True)
class SegmentationProtocol:
    """How a head was scored: window side and stride in pixels; short sides that images are resized to (one a scale);
    the longest long side after that (None: any); whether mirrored images are predicted too."""

    crop_px: int
    stride_px: int
    short_sides_px: tuple[int, ...]
    longest_px: int | None
    flip: bool


class Segmenter(nn.Module):
    """An encoder and a linear segmentation head. Runs where its weights are, without gradients once loaded.

    `class_names` and `palette` (RGB) are the file's own; empty where it has none.
    """

    source = Source("none")

    def __init__(
        self,
        encoder: VisionTransformer,
        head: LinearSegmentationHead,
        blocks: tuple[int, ...],
        protocol: SegmentationProtocol,
        class_names: tuple[str, ...] = (),
        palette: tuple[tuple[int, int, int], ...] = (),
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.blocks, self.protocol = encoder, head, blocks, protocol
        self.class_names, self.palette = class_names, palette

    @property
    def sources(self) -> list[Source]:
        """The weights behind a result: the head's and the encoder's."""
        return [self.source, self.encoder.source]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.head.project.out_channels

    def raw(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) RGB in [0, 1] -> logits on the padded image's patch grid (B, classes, h, w)."""
        padded = pad_to_patches(images, self.encoder.patch)
        return self.head(self.encoder.intermediate(padded, self.blocks, norm=True))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) RGB in [0, 1], any sides -> logits (B, classes, H, W), the image as one window."""
        return F.interpolate(self.raw(images), size=images.shape[-2:], mode="bilinear", align_corners=False)

    def slide(self, images: torch.Tensor, crop_px: int | None = None, stride_px: int | None = None) -> torch.Tensor:
        """The same by overlapping windows (the protocol's without arguments): mean logits (B, classes, H, W).

        Images are taken at their size; `probabilities` is the whole protocol.
        """
        crop = self.protocol.crop_px if crop_px is None else crop_px
        stride = self.protocol.stride_px if stride_px is None else stride_px
        if crop < 1 or stride < 1:
            raise ValueError(f"window side and stride must be positive pixels; received {crop} and {stride}")
        height, width = images.shape[-2:]
        rows, columns = window_starts(height, crop, stride), window_starts(width, crop, stride)
        if len(rows) == len(columns) == 1:
            return self(images)
        tall, wide = min(crop, height), min(crop, width)
        corners = [(top, left) for top in rows for left in columns]
        total = count = None
        for first in range(0, len(corners), WINDOWS_AT_ONCE):
            some = corners[first : first + WINDOWS_AT_ONCE]
            windows = torch.cat([images[..., top : top + tall, left : left + wide] for top, left in some])
            for (top, left), logits in zip(some, self(windows).split(len(images))):
                if total is None:
                    total = logits.new_zeros(*logits.shape[:2], height, width)
                    count = logits.new_zeros(height, width)
                total[..., top : top + tall, left : left + wide] += logits
                count[top : top + tall, left : left + wide] += 1
        return total.div_(count)

    def probabilities(
        self,
        images: torch.Tensor,
        sizes: Sequence[tuple[int, int]] | None = None,
        flip: bool | None = None,
        crop_px: int | None = None,
        stride_px: int | None = None,
    ) -> torch.Tensor:
        """The whole protocol: resize, windows, softmax, mean over scales and mirror images (B, classes, H, W).

        `sizes`: (height, width) of each scale instead of the protocol's; the others likewise.
        """
        size = tuple(images.shape[-2:])
        sizes = self.sizes(*size) if sizes is None else sizes
        mirrored = (False, True) if (self.protocol.flip if flip is None else flip) else (False,)
        total = None
        for scale in sizes:
            resized = images.float()
            if tuple(scale) != size:
                resized = F.interpolate(resized, size=tuple(scale), mode="bilinear", align_corners=False)
            for mirror in mirrored:
                logits = self.slide(resized.flip(-1) if mirror else resized, crop_px, stride_px)
                if tuple(scale) != size:
                    logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
                probability = logits.softmax(1)
                probability = probability.flip(-1) if mirror else probability
                total = probability if total is None else total.add_(probability)
        return total.div_(len(sizes) * len(mirrored))

    def sizes(self, height: int, width: int, scales: int | None = None) -> list[tuple[int, int]]:
        """(height, width) of the first `scales` of the protocol's (None: all) for an image of this size."""
        found = []
        for short in self.protocol.short_sides_px[:scales]:
            scale = short / min(height, width)
            if self.protocol.longest_px is not None:
                scale = min(scale, self.protocol.longest_px / max(height, width))
            found.append((math.floor(scale * height + 0.5), math.floor(scale * width + 0.5)))
        return found


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Where the windows begin along an axis: every `stride`, the last one moved back to end with the axis."""
    count = max(length - crop + stride - 1, 0) // stride + 1
    return [max(min(index * stride + crop, length) - crop, 0) for index in range(count)]
