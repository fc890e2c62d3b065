"""`dune-mini`: a small encoder for CPUs. A convolutional stem keeps fine detail, a narrow ViT sees the whole image.

Tokens lie on a stride-16 grid as a ViT/16's; the stem's finer maps are for heads that need pixels (models/stems.py).
Positions enter by 2-D RoPE, so every size is native. Registers after Darcet et al., ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

from dune_cli.models.blocks import Block, Rope2d, Rotation
from dune_cli.models.patch_embed import Tokens, grid_of
from dune_cli.models.stems import ConvStem, LiteStem, Maps, Stem, ToTokens, XFeatStem
from dune_cli.provenance import Source

PATCH = 16
ROPE_BASE = 100.0
NATIVE_SIZE_PX = 448


PARTS = {"conv": ConvStem, "xfeat": XFeatStem, "lite": LiteStem}


@dataclass(frozen=True)
class MiniConfig:
    """Sizes of a `dune-mini`.

    parts: of the stem (`PARTS`). conv, conv_blocks: the part `conv`'s channels at strides 2, 4 and 8, and its residual
    blocks at 4 and 8.
    """

    width: int = 256
    depth: int = 7
    heads: int = 4
    hidden: int = 1024
    registers: int = 4
    parts: tuple[str, ...] = ("conv",)
    conv: tuple[int, int, int] = (32, 64, 128)
    conv_blocks: tuple[int, int] = (1, 2)

    def stem(self) -> dict[str, Stem]:
        """The stem's parts by name."""
        return {name: ConvStem(self.conv, self.conv_blocks) if name == "conv" else PARTS[name]() for name in self.parts}


@dataclass(frozen=True)
class Pyramid:
    """Stem maps (B, C, H/s, W/s) by part and stride s, and the tokens at stride 16."""

    maps: dict[str, Maps]
    tokens: Tokens


class MiniEncoder(nn.Module):
    """Images in [0, 1] to tokens; each part of the stem normalises for itself."""

    teachers: tuple[str, ...] = ()
    source = Source("none")
    open_stem: Mapping[str, Source] = MappingProxyType({})  # the open weights that its stem was given, by part

    def __init__(self, config: MiniConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.ModuleDict(config.stem())
        self.to_tokens = ToTokens(dict(self.stem.items()), config.width)
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
        """As `forward`, with the stem's maps."""
        maps, (tokens,) = self.levels(images, (-1,), norm)
        return Pyramid(maps, tokens)

    def intermediate(self, images: torch.Tensor, layers: Sequence[int], norm: bool = True) -> list[Tokens]:
        """Outputs of the blocks `layers` (counted from 0; negative from the end), in that order."""
        return self.levels(images, layers, norm)[1]

    def levels(
        self, images: torch.Tensor, layers: Sequence[int], norm: bool = True
    ) -> tuple[dict[str, Maps], list[Tokens]]:
        """The stem's maps by part and stride, and the outputs of the blocks `layers` as `intermediate` gives them."""
        wanted = [range(len(self.blocks))[layer] for layer in layers]
        x, rotation, grid, maps = self._embed(images)
        kept: dict[int, Tokens] = {}
        for index, block in enumerate(self.blocks[: max(wanted) + 1]):
            x = block(x, rotation)
            if index in wanted:
                kept[index] = self._tokens(x, grid, norm)
        return maps, [kept[layer] for layer in wanted]

    def project(self, images: torch.Tensor, teacher: str) -> Tokens:
        """A bare encoder has no projectors: always ValueError."""
        raise ValueError(f"this encoder has no projector for {teacher!r}: its file carries none")

    def _embed(self, images: torch.Tensor) -> tuple[torch.Tensor, Rotation, tuple[int, int], dict[str, Maps]]:
        grid = grid_of(images, PATCH)
        images = images.to(self.cls_token.device, torch.float32)
        maps = {name: part(images) for name, part in self.stem.items()}
        patches = self.to_tokens(maps)
        front = (self.cls_token, self.register_tokens)
        x = torch.cat([*(part.expand(images.shape[0], -1, -1) for part in front), patches.float()], 1)
        return x, self._rotation(grid, x.device), grid, maps

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
