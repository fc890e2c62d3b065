"""Weight files as safetensors: headers, lengths, data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save

from dune_cli.checkpoints.weight_files import WeightFile, read_weights
from fuzz.harness import Sample


def samples(folder: Path) -> Sequence[Sample]:
    tensors = {
        "a.weight": torch.arange(12.0).reshape(3, 4),
        "a.bias": torch.zeros(3),
        "half": torch.ones(2, 2, dtype=torch.float16),
        "brain": torch.ones(4, dtype=torch.bfloat16),
        "steps": torch.tensor(7),
        "none": torch.zeros(0, 5),
    }
    whole = save(tensors, {"facts": '{"model": "x"}', "note": "text"})
    return [Sample({"w.safetensors": whole}, lambda case: read_weights(case / "w.safetensors"), _are_weights)]


def _are_weights(found: WeightFile) -> None:
    assert found.format == "safetensors" and _are_texts(found.metadata)
    for name, tensor in found.checkpoint.items():
        assert isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.numel() < 1000
        assert len(tensor.reshape(-1).tolist()) == tensor.numel()


def _are_texts(metadata: dict[str, str]) -> bool:
    return all(isinstance(key, str) and isinstance(value, str) for key, value in metadata.items())
