"""Reads named arrays out of an .npz file without ever running a pickle."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dune_cli.errors import CheckpointError


def read_arrays(path: Path, what: str, cure: str, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays `names` of the file, or all. Others are not touched, so pickled ones among them do no harm.

    Raises CheckpointError for what is no .npz file, cut short, lacks a name, or holds pickled objects under one; its
    sentence calls the file `what` and ends with `cure`.
    """
    if not path.stat().st_size:
        raise CheckpointError(f"{path} is empty (0 bytes), not {what}; {cure}")
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            cut = file.read(4) == b"PK\x03\x04"
        why = (
            "is cut short: its table of contents, at the end, is missing" if cut else f"is no .npz file, so not {what}"
        )
        raise CheckpointError(f"{path} {why}; {cure}")
    arrays = {}
    name = "its table of contents"
    try:
        with np.load(path, allow_pickle=False) as file:
            lacking = [name for name in names or () if name not in file.files]
            if lacking:
                raise CheckpointError(f"{path} is not {what}: it lacks {', '.join(lacking)}; {cure}")
            for name in file.files if names is None else names:
                arrays[name] = file[name]
    except (OSError, EOFError, MemoryError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not {what}: {name} cannot be read ({error}); {cure}") from error
    return arrays
