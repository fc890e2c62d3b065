"""A teacher's projector and its standardisation (specs 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from dune_cli.models.blocks import Block
from dune_cli.models.precision import TrunkLinear
from dune_cli.models.tokens import Tokens


class TeacherProjector(nn.Module):
    """Transformer block(s) over CLS and patch tokens, then one linear layer to the teacher's width; no norm between."""

    def __init__(self, width: int, heads: int, hidden: int, depth: int, teacher_width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, hidden, layer_scale=True) for _ in range(depth))
        self.linear = TrunkLinear(width, teacher_width)

    def forward(self, tokens: Tokens) -> Tokens:
        """Student tokens before the final norm -> the teacher's CLS (B, T) and patches (B, N, T); no registers."""
        x = torch.cat([tokens.cls[:, None], tokens.patches], 1)
        for block in self.blocks:
            x = block(x)
        x = self.linear(x).float()
        return Tokens(cls=x[:, 0], registers=x[:, :0], patches=x[:, 1:], grid=tokens.grid)


class TokenNorm(nn.Module):
    """Statistics of one token type of a teacher; standardises with them: (x - mean) / max(std, 1e-3)."""

    MIN_STD = 1e-3
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., T) -> standardised, same shape."""
        return (x - self.mean) / self.std.clamp(min=self.MIN_STD)


class TeacherNorm(nn.Module):
    """The statistics of a teacher's token types ("cls", "patch")."""

    def __init__(self, widths: Iterable[tuple[str, int]]) -> None:
        super().__init__()
        self.normalizers = nn.ModuleDict({kind: TokenNorm(width) for kind, width in widths})
