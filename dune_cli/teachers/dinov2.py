"""DINOv2 as a teacher of 2-D semantics: CLS and patches of an official file. Source: Oquab et al., 2023; Apache-2.0."""

from __future__ import annotations

import torch

from dune_cli.checkpoints.loader import load_encoder
from dune_cli.errors import CheckpointError
from dune_cli.models.vit import VisionTransformer
from dune_cli.teachers.teacher import CLS, PATCH, Teacher, VitTeacher

DEFAULT_WEIGHTS = "dinov2-vitl14-reg"


def load(weights: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    """DINOv2 from a registry name or file; the published training's ViT-L/14 with registers by default."""
    encoder = load_encoder(weights, str(device), str(dtype).removeprefix("torch."))
    if not isinstance(encoder, VisionTransformer):
        raise CheckpointError(f"{weights} is no DINOv2 encoder; the teacher dinov2 takes the official hub files")
    return VitTeacher("dinov2", encoder, (CLS, PATCH), encoder.source)
