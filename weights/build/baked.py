"""What the scripts of this folder say of a file that they have written."""

from __future__ import annotations

from pathlib import Path

from dune_cli.checkpoints import registry
from dune_cli.provenance import sha256_of


def report(output: Path, name: str) -> None:
    """Prints size and hash of `output`, and whether they are those of the registry's entry `name`."""
    sha256, entry = sha256_of(output), registry.find(name)
    same = "as" if entry is not None and sha256 == entry.sha256 else "NOT as"
    print(f"{output}: {output.stat().st_size} bytes, sha256 {sha256}, {same} the registry says")
