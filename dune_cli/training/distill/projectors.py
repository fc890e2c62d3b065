"""Projectors from a student's tokens to a teacher's: the paper's transformer block, an MLP, or a ladder of MLPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from dune_cli.models.distilled_encoder import TeacherProjector
from dune_cli.models.patch_embed import Tokens
from dune_cli.teachers.teacher import CLS, PATCH


class ProjectorMlp(nn.Sequential):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, teacher_width: int) -> None:
        super().__init__(nn.Linear(width, width), nn.GELU(), nn.Linear(width, teacher_width))


class TransformerProjector(nn.Module):
    """`tp`, the paper's: one block over CLS and patches, then a linear layer (docs/models/encoder.md)."""

    def __init__(self, width: int, heads: int, depths: int, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.projector = TeacherProjector(width, heads, 4 * width, 1, _one_width(widths))

    def forward(self, tokens: Sequence[Tokens]) -> dict[str, torch.Tensor]:
        out = self.projector(tokens[-1])
        return {CLS: out.cls, PATCH: out.patches}


class SimpleProjector(nn.Module):
    """`sp`: one MLP on the last tokens (UNIC's plain head, arXiv 2408.05088)."""

    def __init__(self, width: int, heads: int, depths: int, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.mlp = ProjectorMlp(width, _one_width(widths))

    def forward(self, tokens: Sequence[Tokens]) -> dict[str, torch.Tensor]:
        return {CLS: self.mlp(tokens[-1].cls), PATCH: self.mlp(tokens[-1].patches)}


class LadderProjector(nn.Module):
    """`lp`: one MLP per depth, summed (UNIC, arXiv 2408.05088, section 3.3)."""

    def __init__(self, width: int, heads: int, depths: int, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(ProjectorMlp(width, _one_width(widths)) for _ in range(depths))

    def forward(self, tokens: Sequence[Tokens]) -> dict[str, torch.Tensor]:
        levels = list(zip(self.mlps, tokens))
        cls = torch.stack([mlp(level.cls) for mlp, level in levels]).sum(0)
        patches = torch.stack([mlp(level.patches) for mlp, level in levels]).sum(0)
        return {CLS: cls, PATCH: patches}


PROJECTORS = {"tp": TransformerProjector, "sp": SimpleProjector, "lp": LadderProjector}


def _one_width(widths: Mapping[str, int]) -> int:
    """The width that a teacher's token types share. ValueError if they differ."""
    distinct = set(widths.values())
    if len(distinct) != 1:
        raise ValueError(f"a teacher's token types must have one width, not {dict(widths)}")
    return distinct.pop()
