"""What the ViT teachers share: a ViT's CLS and patch tokens after its final norm, on the student's grid."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from dune_cli.models.vit import VisionTransformer
from dune_cli.provenance import Source
from dune_cli.teachers.teacher import CLS, PATCH, Teacher, resize_to_grid


class VitTeacher(Teacher):
    """An encoder `forward(images) -> Tokens`; `kinds` are the token types that it teaches.

    Positions of a DINOv2-shaped ViT are resampled by the first policy (offset 0.1, no antialiasing), the file with
    registers too: so it was in the published training (spec 1, "Teachers").
    """

    def __init__(self, name: str, encoder: nn.Module, kinds: tuple[str, ...], source: Source, note: str = "") -> None:
        super().__init__()
        if isinstance(encoder, VisionTransformer):
            encoder.config = replace(encoder.config, position_policy="offset")
        self.name, self.encoder, self.source, self.note = name, encoder, source, note
        self.widths = dict.fromkeys(kinds, encoder.width)

    def tokens(self, images: torch.Tensor, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        tokens = self.encoder(resize_to_grid(images, grid, self.encoder.patch))
        every = {CLS: tokens.cls, PATCH: tokens.patches}
        return {kind: every[kind] for kind in self.widths}
