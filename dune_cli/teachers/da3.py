"""Depth Anything 3's backbone as a teacher of dense geometry. Source: arXiv 2511.10647; Apache-2.0 (four models)."""

from __future__ import annotations

import torch

from dune_cli.checkpoints.loader import load_depth
from dune_cli.errors import CheckpointError
from dune_cli.models.da3_backbone import Da3Backbone
from dune_cli.models.depth_anything3 import MonocularDepth, MultiViewDepth
from dune_cli.provenance import Source
from dune_cli.teachers.teacher import PATCH, Teacher, resize_to_grid

DEFAULT_WEIGHTS = "da3-base"


class Da3Teacher(Teacher):
    """The patch tokens that the depth head reads last. Each image is a scene of its own.

    Multi-view models: 2D channels, the tokens within the view, raw, beside those over all views, after the final norm
    (docs/models/depth-anything-3.md, "Backbone"). Monocular ones: D channels, after the final norm.
    """

    name = "da3"

    def __init__(self, backbone: Da3Backbone, source: Source) -> None:
        super().__init__()
        self.backbone, self.source = backbone, source
        self.widths = {PATCH: backbone.width if backbone.first_global is None else 2 * backbone.width}

    def tokens(self, images: torch.Tensor, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        resized = resize_to_grid(images, grid, self.backbone.patch)
        return {PATCH: self.backbone.views(resized, alone=True).levels[-1]}


def load(weights: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    """The backbone of a model of Depth Anything 3, from a registry name or a file."""
    model = load_depth(weights, device=str(device), dtype=str(dtype).removeprefix("torch."))
    if isinstance(model, MultiViewDepth):
        return Da3Teacher(model.network.backbone, model.source)
    if isinstance(model, MonocularDepth):
        return Da3Teacher(model.backbone, model.source)
    raise CheckpointError(f"{weights} is no model of Depth Anything 3; the teacher da3 takes da3-small, da3-base, …")
