"""LoMa (arXiv 2604.04931; docs/models/loma.md): DaD's detector, DeDoDe's descriptor, a LightGlue without matchability.

Detector and descriptor are pyramids of their own: a VGG with batch normalisation, and refiners from stride 8 to 1 that
add to a running sum. Names of parameters are the published ones but for the parts' names.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dune_cli.models.lightglue import LightGlue, LightGlueConfig
from dune_cli.models.patch_embed import IMAGENET_MEAN, IMAGENET_STD, normalise
from dune_cli.models.sampling import bilinear_corners
from dune_cli.provenance import Source

STRIDE = 8  # that the sides of an image are multiples of
LAYERS = 9  # of the matcher
HEAD_WIDTH = 64
CHANNELS = (64, 128, 256, 512)  # of the VGG's maps, at strides 1, 2, 4, 8
# of the refiners, by stride: width inside, and of the context for the next finer one
REFINERS = {8: (512, 256), 4: (256, 128), 2: (64, 32), 1: (32, 1)}
VGG11, VGG19 = (1, 1, 2, 2), (2, 2, 4, 4)  # convolutions at each stride
DETECTOR_BLOCKS, DESCRIPTOR_BLOCKS = 3, 5
RESIDUAL = 1.4  # by which the sum of a refiner's hidden blocks and their input is divided
WINDOW = 3  # pixels: of the non-maximum suppression and of the sub-pixel position
TEMPERATURE = 0.5  # of the sub-pixel position


class Vgg(nn.Module):
    """Images to maps at strides 1, 2, 4 and 8, each from before its pooling. Layers are numbered as torchvision's."""

    def __init__(self, convolutions: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for stage, (count, channels) in enumerate(zip(convolutions, CHANNELS)):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                layers += [nn.Conv2d(inputs, channels, 3, padding=1), _norm(channels), nn.ReLU(inplace=True)]
                inputs = channels
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for layer in self.layers:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
            x = layer(x)
        return [*maps, x]


class Refiner(nn.Module):
    """A map and the context of the coarser one -> what is added to the running sum, and the next context."""

    def __init__(self, inputs: int, width: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.block1 = _block(nn.Conv2d(inputs, width, 1))
        self.hidden_blocks = nn.Sequential(
            *(_block(nn.Conv2d(width, width, 5, padding=2, groups=width)) for _ in range(blocks))
        )
        self.out_conv = nn.Conv2d(width, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Before `out_conv`."""
        first = self.block1(x)
        return self.hidden_blocks(first).add_(first).div_(RESIDUAL)


class VggPyramid(nn.Module):
    """A VGG and its refiners. `outputs`: channels of the sum. `number_type`: that of the convolutions."""

    number_type = torch.float32
    enlarge_mode = "bilinear"  # of the sum

    def __init__(self, convolutions: tuple[int, ...], blocks: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.encoder = Vgg(convolutions)
        layers, context = nn.ModuleDict(), 0
        for (stride, (width, next_context)), channels in zip(REFINERS.items(), reversed(CHANNELS)):
            layers[str(stride)] = Refiner(channels + context, width, outputs + next_context, blocks)
            context = next_context
        self.decoder = nn.ModuleDict({"layers": layers})

    def fold(self) -> None:
        """Batch normalisations go into the convolutions before them, in place; the network answers the same."""
        for block in (self.encoder.layers, *(m for m in self.decoder.modules() if isinstance(m, nn.Sequential))):
            for index, layer in enumerate(block):
                if isinstance(layer, nn.BatchNorm2d):
                    block[index - 1], block[index] = fuse_conv_bn_eval(block[index - 1], layer), nn.Identity()

    def last_values(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """images (B, 3, H, W), sides multiples of STRIDE -> the sum (B, outputs, H / 2, W / 2) in float32, and what the
        last refiner has before its `out_conv`, (B, 32, H, W)."""
        half = self.number_type != torch.float32
        with torch.autocast(images.device.type, self.number_type, enabled=half):
            maps = self.encoder(images.contiguous(memory_format=torch.channels_last))
            total = context = None
            for refiner in self.decoder["layers"].values():
                features = maps.pop()
                if context is not None:
                    features = torch.cat([features, _enlarge(context, features).to(features.dtype)], 1)
                hidden = refiner(features)
                if not maps:
                    break
                added = refiner.out_conv(hidden)
                added, context = added[:, : self.outputs].float(), added[:, self.outputs :]
                total = added if total is None else added + _enlarge(total, features, self.enlarge_mode)
        return total, hidden

    def last_convolution(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight (outputs, 32) and bias (outputs,) that bring the last refiner's values to the sum."""
        last = self.decoder["layers"]["1"].out_conv
        return last.weight[: self.outputs, :, 0, 0], last.bias[: self.outputs]

    def dense_map(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) -> the whole sum (B, outputs, H, W) in float32."""
        total, hidden = self.last_values(images)
        weight, bias = self.last_convolution()
        return _enlarge(total, hidden, self.enlarge_mode).add_(F.conv2d(hidden.float(), weight[..., None, None], bias))


class LomaDetector(VggPyramid):
    """DaD: images in [0, 1] to keypoints. Normalises for itself (ImageNet)."""

    enlarge_mode = "bicubic"

    def __init__(self) -> None:
        super().__init__(VGG11, DETECTOR_BLOCKS, 1)

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """image (1, 3, H, W) -> (H, W): logits, over all pixels, that a keypoint is there."""
        return self.dense_map(normalise(image, IMAGENET_MEAN, IMAGENET_STD))[0, 0]

    def forward(self, image: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """image (1, 3, H, W), sides multiples of STRIDE -> at most `count` keypoints, the most probable first.

        Positions (N, 2), x and y from -1 to 1 between the image's edges, and probabilities (N,). Where the image has
        fewer maxima than `count`, the published code fills up with pixels of probability 0, which are left out here.
        """
        logits = self.logits(image)
        height, width = logits.shape
        probabilities = logits.flatten().softmax(0).view(1, height, width)
        maxima = probabilities == F.max_pool2d(probabilities, WINDOW, 1, WINDOW // 2)
        probabilities = (probabilities * maxima).flatten()
        best, index = probabilities.topk(min(count, int(maxima.sum())))
        best, index = best[best > 0], index[best > 0]
        row, column = index // width, index % width
        steps = torch.arange(WINDOW, device=logits.device)
        windows = F.pad(logits, (1, 1, 1, 1))[row[:, None, None] + steps[:, None], column[:, None, None] + steps]
        share = (windows.flatten(1) / TEMPERATURE).softmax(1).view_as(windows)
        offset = steps - WINDOW // 2
        x = column + 0.5 + (share.sum(1) * offset).sum(1)
        y = row + 0.5 + (share.sum(2) * offset).sum(1)
        return torch.stack([2 * x / width - 1, 2 * y / height - 1], 1), best


class LomaDescriptor(VggPyramid):
    """DeDoDe-B: images in [0, 1], not normalised, to descriptors, which have no unit length."""

    def __init__(self, outputs: int) -> None:
        super().__init__(VGG19, DESCRIPTOR_BLOCKS, outputs)

    def forward(self, image: torch.Tensor, xy: torch.Tensor) -> torch.Tensor:
        """image (1, 3, H, W), and positions (N, 2) from -1 to 1 -> descriptors (N, outputs).

        Bilinear samples of `dense_map`, zero outside, whose finest step is computed at the sampled pixels only.
        """
        total, hidden = self.last_values(image)
        size = xy.new_tensor([hidden.shape[3], hidden.shape[2]])
        corners, weights = bilinear_corners((xy + 1) / 2 * size - 0.5, size - 1)  # (4, N, 2), (4, N)
        column, row = corners.long().unbind(-1)
        values = (hidden[0, :, row, column].float() * weights).sum(1).T  # (N, 32)
        weight, bias = self.last_convolution()
        grid = 2 * (corners + 0.5) / size - 1
        enlarged = F.grid_sample(total, grid[None], padding_mode="border", align_corners=False)[0]  # (C, 4, N)
        return (enlarged * weights).sum(1).T + values @ weight.T + weights.sum(0)[:, None] * bias


class LomaNetwork(nn.Module):
    """Detector, descriptor and matcher. `glue.match` takes the detector's positions and projected descriptors."""

    source = Source("none")

    def __init__(self, inputs: int, width: int) -> None:
        """`inputs`: channels of a descriptor; `width`: of the matcher, HEAD_WIDTH for each head."""
        super().__init__()
        self.detector, self.descriptor = LomaDetector(), LomaDescriptor(inputs)
        self.glue = LightGlue(
            LightGlueConfig(inputs, width, LAYERS, width // HEAD_WIDTH, prune_below=0.0, matchability=False)
        )

    def fold(self) -> LomaNetwork:
        """As of `VggPyramid`, of both."""
        for part in self._pyramids():
            part.fold()
            part.to(memory_format=torch.channels_last)
        return self

    def convolve_in(self, number_type: torch.dtype) -> LomaNetwork:
        """The number type of the convolutions of detector and descriptor; their sums are float32 always."""
        for part in self._pyramids():
            part.number_type = number_type
        return self

    def _pyramids(self) -> Iterator[VggPyramid]:
        yield from (self.detector, self.descriptor)


def _norm(channels: int) -> nn.BatchNorm2d:
    """Without the counter, which files may lack, and which inference does not read."""
    norm = nn.BatchNorm2d(channels)
    norm.num_batches_tracked = None
    return norm


def _block(convolution: nn.Conv2d) -> nn.Sequential:
    width = convolution.out_channels
    return nn.Sequential(convolution, _norm(width), nn.ReLU(inplace=True), nn.Conv2d(width, width, 1))


def _enlarge(values: torch.Tensor, like: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    """values (B, C, h, w) as large as `like`, float32: not every device enlarges other types."""
    return F.interpolate(values.float(), size=like.shape[-2:], mode=mode, align_corners=False)
