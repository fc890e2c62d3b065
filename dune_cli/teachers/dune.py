"""A published DUNE encoder as a teacher: CLS and patches after its final norm. Source: arXiv 2503.14405."""

from __future__ import annotations

import torch

from dune_cli.checkpoints.loader import load_encoder
from dune_cli.errors import CheckpointError
from dune_cli.models.distilled_encoder import DistilledEncoder
from dune_cli.teachers.teacher import CLS, PATCH, Teacher, VitTeacher

DEFAULT_WEIGHTS = "dune-vitb14-448"


def load(weights: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    """A DUNE or dune-mini encoder from a registry name or file."""
    encoder = load_encoder(weights, str(device), str(dtype).removeprefix("torch."))
    if not isinstance(encoder, DistilledEncoder):
        raise CheckpointError(f"{weights} is no DUNE encoder; the teacher dune takes DUNE's files")
    return VitTeacher("dune", encoder.vit, (CLS, PATCH), encoder.source)
