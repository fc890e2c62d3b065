"""The only place that opens weight files: PyTorch's .pth/.pt without running anything in them, and safetensors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dune_cli.checkpoints import magic
from dune_cli.errors import CheckpointError
from dune_cli.provenance import sha256_of

if TYPE_CHECKING:
    import torch

    from dune_cli.checkpoints.store import Located


@dataclass(frozen=True)
class WeightFile:
    """An opened weight file.

    `tree`: the dictionary as it lies in the file (containers, state dicts, scalars); for safetensors the flat state
    dict. `metadata`: the strings of a safetensors header; empty for PyTorch files. Tensors are on the CPU and, where
    the format allows, mapped: their bytes are read when used.
    """

    path: Path
    format: Literal["torch", "safetensors"]
    tree: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal sha256 of the file (reads it once)."""
        return sha256_of(self.path)


def read_weights(path: str | Path) -> WeightFile:
    """Opens a weight file, told by its content and not by its ending.

    A PyTorch pickle may build tensors, plain containers, `argparse.Namespace`, NumPy arrays and numbers, and paths.
    Any other name in it is refused with that name, and never run. Raises CheckpointError: unreadable, empty, cut,
    hostile, or something else (then it says what).
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; a weight file (.pth, .pt, .safetensors) is needed")
    if not path.exists():
        raise CheckpointError(f"no such file: {path}")
    if not path.is_file():
        raise CheckpointError(f"{path} is no regular file; a weight file (.pth, .pt, .safetensors) is needed")
    try:
        kind = magic.kind_of(path)
        if kind == "safetensors":
            return _read_safetensors(path)
        from dune_cli.checkpoints import torch_files

        tree = torch_files.read_legacy(path) if kind == "torch-legacy" else torch_files.read_zip(path)
        if not isinstance(tree, Mapping):
            raise CheckpointError(f"{path} holds a {type(tree).__name__}; a dictionary of weights is needed")
        return WeightFile(path, "torch", dict(tree))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def read_located(located: Located, remember: bool = True) -> WeightFile:
    """Opens a file that `store.locate` found. Its hash is compared before any of its content is read.

    A published file in the weights folder that is seen for the first time is pinned (`remember`). CheckpointError: not
    the pinned file, or as `read_weights`.
    """
    from dune_cli.checkpoints import store

    path = located.path
    if not path.is_file() or not store.has_hash(located):
        return read_weights(path)
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    store.check(located, sha256)
    file = read_weights(path)
    vars(file)["sha256"] = sha256  # the cached property's place
    if remember:
        store.remember(located, sha256)
    return file


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a flat state dict and its header strings, bit for bit; tensors that share memory are stored apart.

    Equal contents make equal files, which others may read as they may any new file. OSError if it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, dict(metadata))
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    _sort_metadata(path)
    mask = os.umask(0o077)
    os.umask(mask)
    path.chmod(0o666 & ~mask)  # safetensors makes it the owner's alone


def _sort_metadata(path: Path) -> None:
    """safetensors writes the header strings in an order that changes from run to run."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def _read_safetensors(path: Path) -> WeightFile:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tree = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return WeightFile(path, "safetensors", tree, dict(file.metadata() or {}))
    except OSError:
        raise
    except Exception as error:  # SafetensorError, and what the library's numbers out of range raise
        why = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is a damaged or cut safetensors file ({why}); fetch it again") from error
