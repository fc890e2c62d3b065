"""A distilled encoder: the ViT with the projectors that predict its teachers' tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from dune_cli.models.projector import TeacherNorm, TeacherProjector
from dune_cli.models.tokens import Tokens
from dune_cli.models.vit import VisionTransformer
from dune_cli.provenance import Source


class DistilledEncoder(nn.Module):
    """A ViT, one projector a teacher, and the teachers' statistics as far as the file carries them (spec 1)."""

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

        The prediction is of the teacher's standardised tokens (spec 2). ValueError for an unknown teacher.
        """
        if teacher not in self.projectors:
            have = ", ".join(self.teachers) or "none"
            raise ValueError(f"this encoder has no projector for {teacher!r}; it has: {have}")
        return self.projectors[teacher](self.vit(images, norm=False))
