"""What the scripts of this folder share: how they round, and what they say of a file that they have written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from dune_cli.checkpoints import registry
from dune_cli.provenance import sha256_of


def report(output: Path, name: str) -> None:
    """Prints size and hash of `output`, and whether they are those of the registry's entry `name`."""
    sha256, entry = sha256_of(output), registry.find(name)
    same = "as" if entry is not None and sha256 == entry.sha256 else "NOT as"
    print(f"{output}: {output.stat().st_size} bytes, sha256 {sha256}, {same} the registry says")


def half_but_statistics(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors in float16; batch statistics and whole numbers as they are."""
    return {
        key: value.half() if value.is_floating_point() and ".running_" not in key else value
        for key, value in tensors.items()
    }
