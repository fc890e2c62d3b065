"""What the scripts of this folder share: their command line, how they round, and what they say of a written file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from dune_cli.checkpoints import registry
from dune_cli.errors import DuneError
from dune_cli.io.outputs import atomic_path, check_output
from dune_cli.provenance import sha256_of


def bake_one_file(bake: Callable[[Path], None], name: str, description: str) -> None:
    """The command line of a script that writes the registry's file `name` out of files that dune finds by itself."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-o", "--output", type=Path, required=True, help="a .safetensors file")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    try:
        output = check_output(options.output, (".safetensors",), options.overwrite)
        with atomic_path(output) as path:
            bake(path)
        report(output, name)
    except DuneError as error:
        raise SystemExit(str(error)) from error


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
