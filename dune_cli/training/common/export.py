"""Trained weights as safetensors files, in float32 and in float16."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from dune_cli.checkpoints import weight_files
from dune_cli.errors import JobFailed
from dune_cli.io.outputs import atomic_path


def licences_text(licences: Mapping[str, str]) -> str:
    """Of weights that depend on others, name -> licence: "dinov2 (Apache-2.0), mast3r (CC BY-NC-SA 4.0)"."""
    return ", ".join(f"{name} ({licence})" for name, licence in sorted(licences.items()))


def write_weights(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], dtype: torch.dtype = torch.float32
) -> None:
    """Writes `path` (.safetensors) atomically, with floating-point tensors as `dtype`. JobFailed when it cannot."""
    converted = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}
    try:
        with atomic_path(path) as temporary:
            weight_files.write_safetensors(temporary, converted, metadata)
    except OSError as error:
        reason = error.strerror or error
        raise JobFailed(f"cannot write {path} ({reason}); make room and run the same command again") from error


def write_full_and_half(
    folder: Path, name: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> tuple[Path, Path]:
    """Writes `name`.safetensors (float32) and `name`_fp16.safetensors (float16) into `folder`; returns their paths."""
    full, half = folder / f"{name}.safetensors", folder / f"{name}_fp16.safetensors"
    write_weights(full, tensors, metadata)
    write_weights(half, tensors, metadata, torch.float16)
    return full, half
