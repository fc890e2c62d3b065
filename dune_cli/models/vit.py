"""The vision transformer of DUNE and DINOv2 (docs/models/encoder.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from dune_cli.models.blocks import Block
from dune_cli.models.patch_embed import IMAGENET_MEAN, IMAGENET_STD, PatchEmbed, Tokens, grid_of, normalise, resample
from dune_cli.provenance import Source

PositionPolicy = Literal["offset", "antialias"]


@dataclass(frozen=True)
class VitConfig:
    """Sizes of a ViT. `positions_side` is M, the native grid's side; `position_policy` how other grids are reached.

    "offset" (DUNE, plain DINOv2): bicubic with the factor (h + 0.1)/M, no antialiasing.
    "antialias" (DINOv2 with registers from the hub): bicubic to h x w, antialiased.
    `gated`: SwiGLU instead of the MLP (DINOv2's ViT-g).
    """

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int
    registers: int
    positions_side: int
    position_policy: PositionPolicy
    layer_scale: bool = True
    gated: bool = False


class VisionTransformer(nn.Module):
    """Images in [0, 1] to tokens; normalises for itself (ImageNet). Parameter names are DINOv2's hub names."""

    teachers: tuple[str, ...] = ()
    source = Source("none")

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.positions_side**2, width))
        if config.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, width))
        self.patch_embed = PatchEmbed(config.patch, width)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.hidden, config.layer_scale, gated=config.gated)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, 1e-6)
        self._positions: dict[tuple[int, int], torch.Tensor] = {}

    @property
    def patch(self) -> int:
        return self.config.patch

    @property
    def width(self) -> int:
        return self.config.width

    @property
    def native_size_px(self) -> int:
        """The side of the square images that the position embeddings were trained on."""
        return self.config.positions_side * self.config.patch

    def forward(self, images: torch.Tensor, norm: bool = True) -> Tokens:
        """images (B, 3, H, W) RGB in [0, 1] -> Tokens; `norm=False`: before the final norm.

        Raises ValueError with the sizes when a side is no multiple of the patch.
        """
        x, grid = self._embed(images)
        for block in self.blocks:
            x = block(x)
        return self._tokens(x, grid, norm)

    def intermediate(self, images: torch.Tensor, layers: Sequence[int], norm: bool = True) -> list[Tokens]:
        """Outputs of the blocks `layers` (counted from 0; negative from the end), in that order."""
        wanted = [range(len(self.blocks))[layer] for layer in layers]
        x, grid = self._embed(images)
        kept: dict[int, Tokens] = {}
        for index, block in enumerate(self.blocks[: max(wanted) + 1]):
            x = block(x)
            if index in wanted:
                kept[index] = self._tokens(x, grid, norm)
        return [kept[layer] for layer in wanted]

    def project(self, images: torch.Tensor, teacher: str) -> Tokens:
        """A bare ViT has no projectors: always ValueError."""
        raise ValueError(f"this encoder has no projector for {teacher!r}: its file carries none")

    def _embed(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        grid = grid_of(images, self.patch)
        images = images.to(self.pos_embed.device, torch.float32)
        positions = self._positions_of(grid)
        patches = self.patch_embed(normalise(images, IMAGENET_MEAN, IMAGENET_STD)) + positions[:, 1:]
        front = [self.cls_token + positions[:, :1]]
        if self.config.registers:
            front.append(self.register_tokens)
        return torch.cat([*(part.expand(images.shape[0], -1, -1) for part in front), patches], 1), grid

    def _tokens(self, x: torch.Tensor, grid: tuple[int, int], norm: bool) -> Tokens:
        if norm:
            x = self.norm(x)
        first = 1 + self.config.registers
        return Tokens(cls=x[:, 0], registers=x[:, 1:first], patches=x[:, first:], grid=grid)

    def _positions_of(self, grid: tuple[int, int]) -> torch.Tensor:
        """Positions (1, 1 + h·w, D) for a grid; kept per grid while evaluating."""
        if self.training or torch.compiler.is_exporting():
            return resample(self.pos_embed, grid, self.config.position_policy)
        if grid not in self._positions:
            with torch.inference_mode(False), torch.no_grad():
                self._positions[grid] = resample(self.pos_embed, grid, self.config.position_policy)
        return self._positions[grid]

    def train(self, mode: bool = True) -> VisionTransformer:
        self._positions.clear()
        return super().train(mode)

    def _apply(self, *args: object, **kwargs: object) -> VisionTransformer:
        self._positions.clear()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: object) -> None:
        self._positions.clear()
        super()._load_from_state_dict(*args)
