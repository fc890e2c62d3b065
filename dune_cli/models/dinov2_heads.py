"""DINOv2's published heads (docs/models/dinov2-heads.md): depth, classes of images, classes of pixels. Float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli.models.dpt import Fusion
from dune_cli.models.patch_embed import Tokens, pad_to_patches
from dune_cli.models.vit import VisionTransformer
from dune_cli.provenance import Source

WINDOWS_AT_ONCE = 4


@dataclass(frozen=True)
class Dinov2DptConfig:
    """Channels: `width` of the tokens, `levels` of the four maps (finest first), then of the fusion and the head."""

    width: int
    levels: tuple[int, int, int, int]
    features: int
    head_hidden: int
    head_features: int


class Dinov2DptHead(nn.Module):
    """Tokens of four blocks, before the final norm, to raw depth.

    Differs from the two-view model's DPT in the readout of the CLS token, in units without bias, and in odd grids,
    where the level is resized to the path (there the path is cropped to the level).
    """

    def __init__(self, config: Dinov2DptConfig, minimum: float) -> None:
        super().__init__()
        self.config, self.minimum = config, minimum
        width, c, features = config.width, config.levels, config.features
        self.readouts = nn.ModuleList(nn.Linear(2 * width, width) for _ in c)
        self.projects = nn.ModuleList(nn.Conv2d(width, channels, 1) for channels in c)
        self.resizes = nn.ModuleList(
            [
                nn.ConvTranspose2d(c[0], c[0], 4, 4),
                nn.ConvTranspose2d(c[1], c[1], 2, 2),
                nn.Identity(),
                nn.Conv2d(c[3], c[3], 3, 2, 1),
            ]
        )
        self.reduce = nn.ModuleList(nn.Conv2d(channels, features, 3, padding=1, bias=False) for channels in c)
        self.fuse = nn.ModuleList(Fusion(features, alone=step == 0, unit_bias=False) for step in range(4))
        self.project = nn.Conv2d(features, features, 3, padding=1)
        self.head = nn.Sequential(
            nn.Conv2d(features, config.head_hidden, 3, padding=1),
            nn.Identity(),  # the upsampling's place in the published numbering
            nn.Conv2d(config.head_hidden, config.head_features, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(config.head_features, 1, 1),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, blocks: Sequence[Tokens]) -> torch.Tensor:
        """Four blocks' Tokens on grid (h, w) -> raw depth (B, 32·ceil(h/2), 32·ceil(w/2)) from the minimum up."""
        levels = [self._level(index, tokens) for index, tokens in enumerate(blocks)]
        path = None
        for fuse, level in zip(self.fuse, reversed(levels)):
            if path is not None and level.shape[-2:] != path.shape[-2:]:
                level = F.interpolate(level, size=path.shape[-2:], mode="bilinear", align_corners=False)
            path = fuse(path, level)
        x = self.head[0](F.relu(self.project(path)))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return F.relu(self.head[2:](x))[:, 0] + self.minimum

    def _level(self, index: int, tokens: Tokens) -> torch.Tensor:
        readout = self.readouts[index]
        of_patches, of_cls = readout.weight.split(self.config.width, 1)
        x = F.linear(tokens.patches, of_patches) + F.linear(tokens.cls, of_cls, readout.bias)[:, None]
        x = F.gelu(x).transpose(1, 2).unflatten(2, tokens.grid)
        return self.reduce[index](self.resizes[index](self.projects[index](x)))


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
