"""Multi-HMR's backbone as a teacher of 3-D humans: patch tokens after its final norm. Source: arXiv 2402.14654."""

from __future__ import annotations

import torch

from dune_cli.checkpoints.loader import load_human_network
from dune_cli.teachers.teacher import PATCH, Teacher, VitTeacher

DEFAULT_WEIGHTS = "multihmr-672-l"


def load(weights: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    """The DINOv2-shaped backbone of an official Multi-HMR file; no body model is needed."""
    network = load_human_network(weights, str(device), str(dtype).removeprefix("torch."))
    return VitTeacher("multihmr", network.backbone, (PATCH,), network.source)
