"""MASt3R's own encoder: a ViT with rotary positions, without CLS, registers and LayerScale (spec 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dune_cli.models.blocks import Block
from dune_cli.models.pixels import HALF, PatchEmbed, grid_of, normalise
from dune_cli.models.rope import Rope2d


@dataclass(frozen=True)
class CrocoConfig:
    """Sizes of the encoder; `rope_base` is the base of its frequencies."""

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int
    rope_base: float


class CrocoEncoder(nn.Module):
    """Images in [0, 1] to patch tokens after the final norm; normalises for itself, (x - 0.5) / 0.5."""

    def __init__(self, config: CrocoConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.patch, config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.hidden, layer_scale=False) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, 1e-6)
        self.rope = Rope2d(config.width // config.heads, config.rope_base)

    @property
    def patch(self) -> int:
        return self.config.patch

    @property
    def width(self) -> int:
        return self.config.width

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """images (B, 3, H, W) -> tokens (B, N, D) and their grid (h, w). ValueError if a side is no patch multiple."""
        grid = grid_of(images, self.patch)
        images = images.to(self.norm.weight.device, torch.float32)
        x = self.patch_embed(normalise(images, HALF, HALF))
        rotation = self.rope(grid, x.device)
        for block in self.blocks:
            x = block(x, rotation)
        return self.norm(x), grid
