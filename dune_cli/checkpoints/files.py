"""The only place that opens weight files: PyTorch's .pth/.pt without running anything in them, and safetensors."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dune_cli.checkpoints import magic, pickles
from dune_cli.errors import CheckpointError
from dune_cli.provenance import sha256_of

if TYPE_CHECKING:
    import torch


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
        return WeightFile(path, "torch", _read_torch(path, legacy=kind == "torch-legacy"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


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
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tree = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return WeightFile(path, "safetensors", tree, dict(file.metadata() or {}))
    except SafetensorError as error:
        why = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is a damaged or cut safetensors file ({why}); fetch it again") from error


def _read_torch(path: Path, legacy: bool) -> dict[str, Any]:
    import torch

    try:
        with torch.serialization.safe_globals(_allowed()):
            if not legacy:
                _refuse(path, torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about a newer protocol, which is refused below
                tree = torch.load(str(path), map_location="cpu", weights_only=True, mmap=not legacy)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        _refuse(path, [named[1]] if named else [])
        protocol, names = pickles.names_in(path, legacy)
        if protocol > 2:
            raise CheckpointError(
                f"{path} refused, nothing of it was run: it was saved with pickle protocol {protocol}, safe loading "
                f"reads torch.save's own, 2; it asks for {', '.join(names) or 'no names'}; have it saved as safetensors"
            ) from error
        raise CheckpointError(f"{path} holds a pickle that is not allowed or damaged ({_reason(error)})") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to call for
        raise CheckpointError(f"{path} is a damaged or cut PyTorch file ({_reason(error)}); fetch it again") from error
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"{path} holds a {type(tree).__name__}; a dictionary of weights is needed")
    return dict(tree)


def _refuse(path: Path, names: list[str]) -> None:
    if names:
        raise CheckpointError(
            f"{path} refused, nothing of it was run: its pickle asks for {', '.join(sorted(names))}, "
            "which weights do not need; get the file from its publisher or as safetensors"
        )


def _reason(error: Exception) -> str:
    """The telling line of PyTorch's message, without its advice to load the file unsafely."""
    lines = [line.strip() for line in str(error).partition("WeightsUnpickler error:")[2].splitlines()]
    lines = [line for line in lines if line] or str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _plain_dict(*factory: object) -> dict[Any, Any]:
    """What a pickled defaultdict becomes: PyTorch's safe unpickler fills plain dictionaries only."""
    return {}


def _allowed() -> list[Any]:
    """What published checkpoints hold besides tensors; none of it can run a program or touch the disk.

    NumPy's names moved from numpy.core to numpy._core in version 2, pathlib's to pathlib._local in Python 3.13. Paths
    become pure paths, which exist on every system.
    """
    import numpy as np

    multiarray = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray  # numpy 1.26: numpy.core
    functions: list[tuple[Callable[..., Any], str]] = []
    for package in ("numpy.core", "numpy._core"):
        functions.append((multiarray._reconstruct, f"{package}.multiarray._reconstruct"))
        functions.append((multiarray.scalar, f"{package}.multiarray.scalar"))
    paths = [
        (getattr(pathlib, f"Pure{name}"), f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath")
    ]
    pure = [
        (getattr(pathlib, name), f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PurePosixPath", "PureWindowsPath")
    ]
    dtypes = [type(np.dtype(code)) for code in np.typecodes["All"]]
    return [
        argparse.Namespace,
        (_plain_dict, "collections.defaultdict"),
        dict,  # the factories that a defaultdict names
        list,
        int,
        float,
        np.ndarray,
        np.dtype,
        *dict.fromkeys(dtypes),
        *functions,
        *paths,
        *pure,
    ]
