"""MASt3R's encoder as a teacher of 3-D scenes and matching: patch tokens after `enc_norm`. Source: arXiv 2406.09756."""

from __future__ import annotations

import torch
from torch import nn

from dune_cli.checkpoints.loader import load_two_view
from dune_cli.errors import CheckpointError
from dune_cli.models.mast3r import CrocoEncoder
from dune_cli.models.patch_embed import Tokens
from dune_cli.teachers.teacher import PATCH, Teacher, VitTeacher

DEFAULT_WEIGHTS = "mast3r-vitl"


class _PatchTokens(nn.Module):
    """The encoder with `Tokens` as its answer; it has no CLS and no registers."""

    def __init__(self, encoder: CrocoEncoder) -> None:
        super().__init__()
        self.encoder, self.patch, self.width = encoder, encoder.patch, encoder.width

    def forward(self, images: torch.Tensor) -> Tokens:
        patches, grid = self.encoder(images)
        return Tokens(patches.mean(1), patches[:, :0], patches, grid)


def load(weights: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    """MASt3R's own encoder out of its official file."""
    model = load_two_view(weights, device=str(device), dtype=str(dtype).removeprefix("torch."))
    if not isinstance(model.encoder, CrocoEncoder):
        raise CheckpointError(f"{weights} has no encoder of MASt3R's own; the teacher mast3r takes MASt3R's file")
    return VitTeacher("mast3r", _PatchTokens(model.encoder), (PATCH,), model.source)
