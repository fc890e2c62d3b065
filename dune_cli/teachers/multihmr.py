"""Multi-HMR's backbone as a teacher of 3-D humans: patch tokens after its final norm. Source: arXiv 2402.14654."""

from __future__ import annotations

import torch

from dune_cli.checkpoints.resolve import naming_file, open_weights, require_kind, to_inference
from dune_cli.teachers._vit import VitTeacher
from dune_cli.teachers.teacher import PATCH, Teacher

DEFAULT = "multihmr-672-l"


def load(argument: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    """The DINOv2-shaped backbone of an official Multi-HMR file; no body model is needed."""
    opened = open_weights(argument or DEFAULT)
    require_kind(opened, "human")
    with naming_file(opened.path):
        model = opened.adapter.build(opened.tree)
    return VitTeacher("multihmr", to_inference(model.backbone, opened.source, device, dtype), (PATCH,), opened.source)
