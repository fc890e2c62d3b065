"""ALIKED-n16 (Zhao, Wu, Chen, Chen, Xu, Li, IEEE TIM 2023): keypoints and descriptors of a photo.

Four blocks at strides 1, 2, 8 and 32, the last two of deformable convolutions (Dai et al., ICCV 2017), each give 32
channels of one map at the photo's size. Keypoints are the maxima of a score map made from it, to sub-pixel by a local
soft-argmax. A descriptor is made from 16 samples of the map, at offsets that the map around the keypoint gives.

The map is never stored: the score's first layer is linear, so that each block is projected before it is enlarged, and
samples are computed where they are taken. Names of parameters are the published ones (BSD-3-Clause, (c) 2022 Zhao
Xiaoming; weights/models/NOTICE.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import e, log2

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dune_cli.models.cpu_products import linear
from dune_cli.models.lightglue import LightGlue, LightGlueConfig
from dune_cli.models.sampling import bilinear_corners
from dune_cli.provenance import Source

CHANNELS = (16, 32, 64, 128)  # of the blocks
POOLED = (1, 2, 4, 4)  # before each block
STRIDE = 32  # that both sides of the photo are padded to
PART = 32  # channels of the map from each block
WIDTH = PART * len(CHANNELS)
SAMPLES = 16  # of a descriptor
TAPS = 3  # pixels of the side of the window that gives the samples' offsets
RADIUS = 2  # pixels: a keypoint is the maximum of a window of 2 x RADIUS + 1
TEMPERATURE = 0.1  # of the soft-argmax
CHUNK = 256  # keypoints that are described at once
BLOCK = 1 << 17  # values that are activated at once
LOG2_E = log2(e)
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805
# LightGlue's published settings
GLUE = LightGlueConfig(inputs=WIDTH, width=256, layers=9, heads=4, prune_below=0.01)
DEPTH_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Keypoints:
    """Of one photo, best first: xy (N, 2) pixels, centres at integers; scores (N,); descriptors (N, 128), unit length.

    A score is that of the keypoint's whole pixel, in (0, 1).
    """

    xy: torch.Tensor
    scores: torch.Tensor
    descriptors: torch.Tensor


class DeformableConv2d(nn.Module):
    """A 3 x 3 convolution whose taps are moved by offsets that another one gives; zero outside the map.

    As torchvision.ops.deform_conv2d, but by `sampled`, which every device has.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.offset_conv = nn.Conv2d(inputs, 2 * TAPS * TAPS, TAPS, padding=1)
        self.regular_conv = nn.Conv2d(inputs, outputs, TAPS, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, _, height, width = x.shape
        limit = max(height, width) / 4
        # (B, H, W, 9, 2): y and x of every tap
        offsets = self.offset_conv(x).clamp(-limit, limit).permute(0, 2, 3, 1).unflatten(-1, (-1, 2))
        steps = torch.arange(TAPS, device=x.device) - 1
        tap_y = offsets[..., 0] + torch.arange(height, device=x.device)[:, None, None] + steps.repeat_interleave(TAPS)
        tap_x = offsets[..., 1] + torch.arange(width, device=x.device)[:, None] + steps.repeat(TAPS)
        rows = x.permute(0, 2, 3, 1)
        columns = torch.stack([sampled(*one) for one in zip(rows, tap_x, tap_y)])  # (B, H, W, 9, C)
        weight = self.regular_conv.weight.permute(0, 2, 3, 1).flatten(1)
        out = linear(columns.view(count * height * width, -1), weight, self.regular_conv.bias)
        return out.view(count, height, width, -1).permute(0, 3, 1, 2)


def sampled(rows: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """rows (H, W, C) at pixels x, y (...): bilinear, zero outside, (..., C)."""
    height, width, channels = rows.shape
    left, above = x.floor(), y.floor()
    shares = (left + 1 - x, x - left), (above + 1 - y, y - above)
    index, weights = [], []
    for step_y in (0, 1):
        for step_x in (0, 1):
            column, row = left + step_x, above + step_y
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index.append(row.clamp(0, height - 1) * width + column.clamp(0, width - 1))
            weights.append(shares[0][step_x] * shares[1][step_y] * inside)
    corners = torch.stack([at.flatten() for at in index], 1).long()
    weight = torch.stack([at.flatten() for at in weights], 1)
    out = F.embedding_bag(corners, rows.reshape(-1, channels), per_sample_weights=weight, mode="sum")
    return out.view(*x.shape, channels)


class ConvBlock(nn.Module):
    """Two convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _selu(self.bn2(self.conv2(_selu(self.bn1(self.conv1(x))))))


class ResidualBlock(nn.Module):
    """Two convolutions beside a projection."""

    def __init__(self, inputs: int, outputs: int, deformable: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, deformable), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs, deformable), nn.BatchNorm2d(outputs)
        self.downsample = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(_selu(self.bn1(self.conv1(x)))))
        return _selu(_pointwise(x, self.downsample.weight, self.downsample.bias).add_(out))


def _conv(inputs: int, outputs: int, deformable: bool) -> nn.Module:
    return DeformableConv2d(inputs, outputs) if deformable else nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


def _pointwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A 1 x 1 convolution of x (B, C, H, W) as a matrix product of its pixels, which channels_last has in rows."""
    count, channels, height, width = x.shape
    out = linear(x.permute(0, 2, 3, 1).reshape(-1, channels), weight.flatten(1).contiguous(), bias)
    return out.view(count, height, width, -1).permute(0, 3, 1, 2)


def _selu(x: torch.Tensor) -> torch.Tensor:
    """F.selu within 5e-7. Without gradients in place, in blocks that fit a cache, by exp2: on a Zen 5 EPYC it took a
    quarter of the time of exp, and a seventieth of that of expm1."""
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return F.selu(x)
    as_stored = x if x.is_contiguous() else x.permute(0, 2, 3, 1)
    shift = x.new_tensor(-SELU_ALPHA * SELU_SCALE)
    for block in as_stored.view(-1).split(BLOCK):
        tail = block.clamp(max=0).mul_(LOG2_E).exp2_()
        block.clamp_(min=0).add_(tail, alpha=SELU_ALPHA)
        torch.add(shift, block, alpha=SELU_SCALE, out=block)
    return x


class SparseDeformableDescriptorHead(nn.Module):
    """The layers of a descriptor: offsets of its samples from a window, samples to features, their weighted sum."""

    def __init__(self) -> None:
        super().__init__()
        self.offset_conv = nn.Sequential(
            nn.Conv2d(WIDTH, 2 * SAMPLES, TAPS), nn.SELU(), nn.Conv2d(2 * SAMPLES, 2 * SAMPLES, 1)
        )
        self.sf_conv = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
        self.agg_weights = nn.Parameter(torch.rand(SAMPLES, WIDTH, WIDTH))

    def offsets(self, windows: torch.Tensor, limit: float) -> torch.Tensor:
        """Windows (N, 9, 128) -> (N, 16, 2) pixels, at most `limit`."""
        first, _, second = self.offset_conv
        hidden = linear(windows.flatten(1), first.weight.permute(0, 2, 3, 1).flatten(1), first.bias)
        out = linear(F.selu(hidden), second.weight.flatten(1), second.bias).clamp(-limit, limit)
        return out.unflatten(1, (2, SAMPLES)).transpose(1, 2)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Samples (N, 16, 128) -> descriptors (N, 128)."""
        features = _selu(linear(samples.flatten(0, 1), self.sf_conv.weight.flatten(1)))
        joined = linear(features.view(len(samples), -1), self.agg_weights.flatten(0, 1).T.contiguous())
        return F.normalize(joined, dim=1)


@dataclass(frozen=True)
class MapParts:
    """The map of one photo, in parts (h, w, 32), the first of stride 1, all of the padded photo, whose first pixel is
    `origin` (x, y) pixels before that of the photo of `size` (width, height)."""

    parts: tuple[torch.Tensor, ...]
    origin: tuple[int, int]
    size: tuple[int, int]

    def at(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The map (P, 128) before it is brought to unit length, and its length (P,), at whole pixels (P, 2)."""
        x, y = (pixels + torch.tensor(self.origin, device=pixels.device)).T
        first, *coarse = self.parts
        height, width = first.shape[:2]
        values = [first.reshape(-1, PART).index_select(0, y.long() * width + x.long())]
        for part in coarse:
            h, w = part.shape[:2]
            values.append(sampled(part, x * ((w - 1) / (width - 1)), y * ((h - 1) / (height - 1))))
        joined = torch.cat(values, 1)
        return joined, torch.linalg.vector_norm(joined, dim=1).clamp_(min=1e-12)


class Aliked(nn.Module):
    """The network of one photo. Float32 always, as everything that keypoints are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = ConvBlock(3, CHANNELS[0])
        for index, deformable in ((2, False), (3, True), (4, True)):
            setattr(self, f"block{index}", ResidualBlock(*CHANNELS[index - 2 : index], deformable))
        for index, channels in enumerate(CHANNELS, 1):
            setattr(self, f"conv{index}", nn.Conv2d(channels, PART, 1, bias=False))
        layers: list[nn.Module] = [nn.Conv2d(WIDTH, 8, 1, bias=False)]
        for inputs, outputs in ((8, 4), (4, 4), (4, 1)):
            layers += [nn.SELU(), nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
        self.score_head = nn.Sequential(*layers)
        self.desc_head = SparseDeformableDescriptorHead()

    def fold(self) -> Aliked:
        """Batch normalisations go into the convolutions before them, in place; the network answers the same."""
        for block in (self.block1, self.block2, self.block3, self.block4):
            for conv_name, norm_name in (("conv1", "bn1"), ("conv2", "bn2")):
                conv, norm = getattr(block, conv_name), getattr(block, norm_name)
                if isinstance(conv, DeformableConv2d):
                    conv.regular_conv = fuse_conv_bn_eval(conv.regular_conv, norm)
                else:
                    setattr(block, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(block, norm_name, nn.Identity())
        return self.to(memory_format=torch.channels_last)

    def forward(self, image: torch.Tensor, max_keypoints: int, threshold: float) -> Keypoints:
        """image (1, 3, H, W) RGB in [0, 1] -> at most `max_keypoints` keypoints of scores above `threshold`."""
        padded, origin = _pad(image)
        parts = self._parts(padded)
        height, width = image.shape[-2:]
        x, y = origin
        scores = self._scores(parts)[0, 0, y : y + height, x : x + width]
        xy, best = detect(scores, max_keypoints, threshold)
        maps = MapParts(tuple(part[0].permute(1, 2, 0).contiguous() for part in parts), origin, (width, height))
        described = [self._describe(maps, some) for some in xy.split(CHUNK)] if len(xy) else [xy.new_zeros(0, WIDTH)]
        return Keypoints(xy, best, torch.cat(described))

    def dense_map(self, images: torch.Tensor) -> torch.Tensor:
        """The map itself, of unit length at each pixel: images (B, 3, H, W) in [0, 1] -> (B, 128, H, W)."""
        padded, (x, y) = _pad(images)
        first, *coarse = self._parts(padded)
        whole = torch.cat([first, *(_enlarge(part, first.shape[-2:]) for part in coarse)], 1)
        return F.normalize(whole, dim=1)[..., y : y + images.shape[-2], x : x + images.shape[-1]]

    def _parts(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Padded images -> (B, 32, h, w) from each block."""
        x, parts = images.contiguous(memory_format=torch.channels_last), []
        for index, pooled in enumerate(POOLED, 1):
            x = getattr(self, f"block{index}")(F.avg_pool2d(x, pooled) if pooled > 1 else x)
            parts.append(_selu(_pointwise(x, getattr(self, f"conv{index}").weight)))
        return parts

    def _scores(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """(B, 1, H, W) in (0, 1)."""
        first, *coarse = [
            _pointwise(part, weight) for part, weight in zip(parts, self.score_head[0].weight.split(PART, dim=1))
        ]
        x = reduce(torch.Tensor.add_, (_enlarge(part, first.shape[-2:]) for part in coarse), first)
        for layer in self.score_head[2::2]:
            x = layer(_selu(x))
        return x.sigmoid()

    def _describe(self, maps: MapParts, xy: torch.Tensor) -> torch.Tensor:
        """Descriptors (N, 128) of keypoints (N, 2)."""
        width, height = maps.size
        last = xy.new_tensor([width - 1, height - 1])
        steps = torch.arange(TAPS, device=xy.device)
        taps = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).flatten(0, 1)
        corner = (xy.floor() - 1).clamp(min=0).minimum((last - TAPS).clamp(min=0))
        values, length = maps.at((corner[:, None] + taps).flatten(0, 1))
        windows = (values / length[:, None]).view(len(xy), -1, WIDTH)
        positions = xy[:, None] + self.desc_head.offsets(windows, max(maps.size) / 4)
        corners, weights = bilinear_corners(positions, last)
        values, length = maps.at(corners.flatten(0, 2))
        share = (weights.flatten() / length).view(len(corners), -1, 1)
        samples = (values.view(len(corners), -1, WIDTH) * share).sum(0)
        return self.desc_head(samples.view(len(xy), SAMPLES, WIDTH))


class AlikedLightGlueNetwork(nn.Module):
    """ALIKED, and the LightGlue that was trained for its descriptors."""

    source = Source("none")

    def __init__(self) -> None:
        super().__init__()
        self.aliked, self.glue = Aliked(), LightGlue(GLUE, DEPTH_CONFIDENCE)


def detect(scores: torch.Tensor, count: int, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` best strict maxima of scores (H, W) above `threshold`: xy (N, 2), scores (N,), best first.

    Each is moved to the centre of its window, weighted by exp(score / TEMPERATURE). The window is inside the photo.
    """
    height, width = scores.shape
    side = 2 * RADIUS + 1
    if min(height, width) < side:
        return scores.new_zeros(0, 2), scores.new_zeros(0)
    best = scores
    for axis in (0, 1):
        inner = best.shape[axis] - 2 * RADIUS
        best = reduce(torch.maximum, (best.narrow(axis, step, inner) for step in range(side)))
    inside = scores[RADIUS : height - RADIUS, RADIUS : width - RADIUS]
    row, column = ((inside == best) & (inside > threshold)).nonzero().T
    steps = torch.arange(side, device=scores.device)
    offset_y, offset_x = (grid.flatten() for grid in torch.meshgrid(steps, steps, indexing="ij"))
    index = (row[:, None] + offset_y) * width + column[:, None] + offset_x
    windows = scores.reshape(-1)[index]  # (N, 25)
    peak = windows[:, side * RADIUS + RADIUS]
    strict = (windows == peak[:, None]).sum(1) == 1
    windows, peak, row, column = (values[strict] for values in (windows, peak, row, column))
    peak, order = peak.topk(min(count, len(peak)))
    share = ((windows[order] - peak[:, None]) / TEMPERATURE).exp()
    share = share / share.sum(1, keepdim=True)
    shift = share @ torch.stack([offset_x, offset_y], 1).to(share.dtype)
    return torch.stack([column[order], row[order]], 1) + shift, peak


def _pad(images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    """Images with their borders repeated around the middle, to multiples of STRIDE; (x, y) of their first pixel."""
    height, width = images.shape[-2:]
    right, below = -width % STRIDE, -height % STRIDE
    left, above = right // 2, below // 2
    return F.pad(images, (left, right - left, above, below - above), mode="replicate"), (left, above)


def _enlarge(values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(values, size=tuple(size), mode="bilinear", align_corners=True)
