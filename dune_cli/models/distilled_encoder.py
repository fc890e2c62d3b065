"""A distilled encoder: the ViT with the projectors that predict its teachers' tokens (docs/models/encoder.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from dune_cli.models.blocks import Block
from dune_cli.models.patch_embed import Tokens
from dune_cli.models.precision import TrunkLinear
from dune_cli.models.vit import VisionTransformer
from dune_cli.provenance import Source


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


class DistilledEncoder(nn.Module):
    """A ViT, one projector a teacher, and the teachers' statistics if the file has them (docs/models/encoder.md)."""

    source = Source("none")

    def __init__(
        self,
        vit: VisionTransformer,
        projectors: Mapping[str, TeacherProjector],
        teacher_norms: Mapping[str, TeacherNorm],
    ) -> None:
        super().__init__()
        self.vit = vit
        self.projectors = nn.ModuleDict(projectors)
        self.teacher_norms = nn.ModuleDict(teacher_norms)

    @property
    def patch(self) -> int:
        return self.vit.patch

    @property
    def width(self) -> int:
        return self.vit.width

    @property
    def teachers(self) -> tuple[str, ...]:
        return tuple(self.projectors)

    @property
    def native_size_px(self) -> int:
        """The side of the square images that the position embeddings were trained on."""
        return self.vit.native_size_px

    def forward(self, images: torch.Tensor, norm: bool = True) -> Tokens:
        """images (B, 3, H, W) RGB in [0, 1] -> Tokens; `norm=False`: before the final norm."""
        return self.vit(images, norm)

    def project(self, images: torch.Tensor, teacher: str) -> Tokens:
        """What the encoder predicts that `teacher` sees: cls (B, T), patches (B, N, T), no registers.

        The prediction is of the teacher's standardised tokens (docs/models/distillation.md). ValueError for an unknown
        teacher.
        """
        if teacher not in self.projectors:
            have = ", ".join(self.teachers) or "none"
            raise ValueError(f"this encoder has no projector for {teacher!r}; it has: {have}")
        return self.projectors[teacher](self.vit(images, norm=False))
