"""Encoder files with random weights that are small enough to train heads on within a test."""

from __future__ import annotations

from pathlib import Path

import torch

from dune_cli.checkpoints import adapters, weight_files
from dune_cli.models.dune_mini import MiniConfig, MiniEncoder


def write_small_mini(path: Path, seed: int = 0) -> Path:
    """A `dune-mini` of width 64 with a stem of its own, as safetensors."""
    torch.manual_seed(seed)
    config = MiniConfig(width=64, depth=2, heads=1, hidden=64, parts=("conv",), conv=(8, 16, 16), conv_blocks=(1, 1))
    state = {f"encoder.{key}": value for key, value in MiniEncoder(config).state_dict().items()}
    tensors, header = adapters.to_safetensors({"model": state})
    weight_files.write_safetensors(path, tensors, header)
    return path
