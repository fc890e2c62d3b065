"""`dune-mini`: a small encoder for CPUs. A convolutional stem keeps fine detail, a narrow ViT sees the whole image.

Tokens lie on a stride-16 grid as a ViT/16's; the stem's maps at strides 2, 4 and 8 are for heads that need pixels.
Positions enter by 2-D RoPE, so every size is native. ConvStem after Xiao et al., "Early convolutions help
transformers see better", NeurIPS 2021; registers after Darcet et al., ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from dune_cli.models.blocks import Block
from dune_cli.models.pixels import IMAGENET_MEAN, IMAGENET_STD, grid_of, normalise
from dune_cli.models.rope import Rope2d, Rotation
from dune_cli.models.tokens import Tokens
from dune_cli.provenance import Source

PATCH = 16
ROPE_BASE = 100.0
NATIVE_SIZE_PX = 448


@dataclass(frozen=True)
class MiniConfig:
    """Sizes of a `dune-mini`. `stem`: channels at strides 2, 4 and 8; `stem_blocks`: residual blocks at 4 and 8."""

    width: int = 256
    depth: int = 8
    heads: int = 4
    hidden: int = 1024
    registers: int = 4
    stem: tuple[int, int, int] = (32, 64, 128)
    stem_blocks: tuple[int, int] = (1, 2)


class ConvNorm(nn.Sequential):
    """3 x 3 convolution, group norm (no batch statistics: a photo's result does not depend on its neighbours)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False), nn.GroupNorm(8, channels_out)
        )


class StemBlock(nn.Module):
    """x + conv(relu(conv(x))), each convolution followed by its norm; then relu."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels)
        self.conv2 = ConvNorm(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class ConvStem(nn.Module):
    """Images (B, 3, H, W), normalised, to maps at strides 2, 4 and 8."""

    def __init__(self, channels: tuple[int, int, int], blocks: tuple[int, int]) -> None:
        super().__init__()
        self.down2 = ConvNorm(3, channels[0], stride=2)
        self.down4 = ConvNorm(channels[0], channels[1], stride=2)
        self.blocks4 = nn.ModuleList(StemBlock(channels[1]) for _ in range(blocks[0]))
        self.down8 = ConvNorm(channels[1], channels[2], stride=2)
        self.blocks8 = nn.ModuleList(StemBlock(channels[2]) for _ in range(blocks[1]))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        half = F.relu(self.down2(images))
        quarter = F.relu(self.down4(half))
        for block in self.blocks4:
            quarter = block(quarter)
        eighth = F.relu(self.down8(quarter))
        for block in self.blocks8:
            eighth = block(eighth)
        return half, quarter, eighth


@dataclass(frozen=True)
class Pyramid:
    """Stem maps (B, C, H/s, W/s) by stride s, and the tokens at stride 16."""

    maps: dict[int, torch.Tensor]
    tokens: Tokens


class MiniEncoder(nn.Module):
    """Images in [0, 1] to tokens; normalises for itself (ImageNet)."""

    teachers: tuple[str, ...] = ()
    source = Source("none")

    def __init__(self, config: MiniConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = ConvStem(config.stem, config.stem_blocks)
        self.to_tokens = nn.Conv2d(config.stem[2], config.width, 2, stride=2)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, config.width))
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.hidden, layer_scale=True) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, 1e-6)
        self._rope = Rope2d(config.width // config.heads, ROPE_BASE)

    @property
    def patch(self) -> int:
        return PATCH

    @property
    def width(self) -> int:
        return self.config.width

    @property
    def native_size_px(self) -> int:
        """The long side to use where none is asked for; every multiple of 16 is native."""
        return NATIVE_SIZE_PX

    def forward(self, images: torch.Tensor, norm: bool = True) -> Tokens:
        """images (B, 3, H, W) RGB in [0, 1] -> Tokens; `norm=False`: before the final norm.

        Raises ValueError with the sizes when a side is no multiple of 16.
        """
        return self.pyramid(images, norm).tokens

    def pyramid(self, images: torch.Tensor, norm: bool = True) -> Pyramid:
        """As `forward`, with the stem's maps at strides 2, 4 and 8."""
        x, rotation, grid, maps = self._embed(images)
        for block in self.blocks:
            x = block(x, rotation)
        return Pyramid(maps, self._tokens(x, grid, norm))

    def intermediate(self, images: torch.Tensor, layers: Sequence[int], norm: bool = True) -> list[Tokens]:
        """Outputs of the blocks `layers` (counted from 0; negative from the end), in that order."""
        wanted = [range(len(self.blocks))[layer] for layer in layers]
        x, rotation, grid, _ = self._embed(images)
        kept: dict[int, Tokens] = {}
        for index, block in enumerate(self.blocks[: max(wanted) + 1]):
            x = block(x, rotation)
            if index in wanted:
                kept[index] = self._tokens(x, grid, norm)
        return [kept[layer] for layer in wanted]

    def project(self, images: torch.Tensor, teacher: str) -> Tokens:
        """A bare encoder has no projectors: always ValueError."""
        raise ValueError(f"this encoder has no projector for {teacher!r}: its file carries none")

    def _embed(self, images: torch.Tensor) -> tuple[torch.Tensor, Rotation, tuple[int, int], dict[int, torch.Tensor]]:
        grid = grid_of(images, PATCH)
        images = images.to(self.cls_token.device, torch.float32)
        images = normalise(images, IMAGENET_MEAN, IMAGENET_STD).contiguous(memory_format=torch.channels_last)
        half, quarter, eighth = self.stem(images)
        patches = self.to_tokens(eighth).flatten(2).transpose(1, 2)
        front = (self.cls_token, self.register_tokens)
        x = torch.cat([*(part.expand(len(images), -1, -1) for part in front), patches.float()], 1)
        return x, self._rotation(grid, x.device), grid, {2: half, 4: quarter, 8: eighth}

    def _rotation(self, grid: tuple[int, int], device: torch.device) -> Rotation:
        """The grid's rotation; CLS and registers are not turned."""
        turned = self._rope(grid, device)
        still = (1 + self.config.registers, *turned.cos.shape[1:])
        return Rotation(
            torch.cat([torch.ones(still, device=device), turned.cos]),
            torch.cat([torch.zeros(still, device=device), turned.sin]),
        )

    def _tokens(self, x: torch.Tensor, grid: tuple[int, int], norm: bool) -> Tokens:
        if norm:
            x = self.norm(x)
        first = 1 + self.config.registers
        return Tokens(cls=x[:, 0], registers=x[:, 1:first], patches=x[:, first:], grid=grid)
