"""Any timm model as a teacher: `timm:NAME` (weights from the Hugging Face cache) or `timm:NAME=FILE`."""

from __future__ import annotations

import torch

from dune_cli.checkpoints.layouts.timm_models import PREFIX
from dune_cli.checkpoints.load import load_encoder
from dune_cli.errors import UserError
from dune_cli.teachers._vit import VitTeacher
from dune_cli.teachers.base import CLS, PATCH, Teacher


def load(argument: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    """A timm ViT's CLS and patch tokens, with its own normalisation."""
    if not argument:
        raise UserError("the teacher timm needs a model: timm:NAME or timm:NAME=FILE")
    encoder = load_encoder(f"{PREFIX}{argument}", str(device), str(dtype).removeprefix("torch."))
    name = argument.partition("=")[0].replace(".", "_")
    return VitTeacher(f"timm_{name}", encoder, (CLS, PATCH), encoder.source)
