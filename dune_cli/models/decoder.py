"""The two-view decoder of MASt3R and DUNE + MASt3R (spec 3): two towers that look at each other."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from dune_cli.models.blocks import DecoderBlock
from dune_cli.models.precision import TrunkLinear
from dune_cli.models.rope import Rope2d

Grid = tuple[int, int]


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder. `encoder_width` is what comes in; `rope_base` the base of the rotary positions."""

    encoder_width: int
    width: int
    depth: int
    heads: int
    hidden: int
    rope_base: float


class TwoViewDecoder(nn.Module):
    """Both views' encoder tokens to both views' token lists."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = TrunkLinear(config.encoder_width, config.width)
        self.blocks1, self.blocks2 = (
            nn.ModuleList(DecoderBlock(config.width, config.heads, config.hidden) for _ in range(config.depth))
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(config.width, 1e-6)
        self.rope = Rope2d(config.width // config.heads, config.rope_base)

    def forward(
        self, tokens1: torch.Tensor, grid1: Grid, tokens2: torch.Tensor, grid2: Grid, keep: Collection[int]
    ) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
        """tokens1 (B, N, E), tokens2 (B, M, E) -> the items `keep` of each view's list.

        Item 0 is the encoder's tokens, item i the output of block i, the last one after the final norm.
        """
        items: tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]] = ({0: tokens1}, {0: tokens2})
        x1, x2 = self.embed(tokens1).float(), self.embed(tokens2).float()
        rotation1, rotation2 = (self.rope(grid, x1.device) for grid in (grid1, grid2))
        for index, (block1, block2) in enumerate(zip(self.blocks1, self.blocks2), 1):
            x1, x2 = block1(x1, x2, rotation1, rotation2), block2(x2, x1, rotation2, rotation1)
            if index in keep:
                last = index == len(self.blocks1)
                items[0][index], items[1][index] = (self.norm(x1), self.norm(x2)) if last else (x1, x2)
        return items
