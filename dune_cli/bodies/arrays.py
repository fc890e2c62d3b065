"""Reads named arrays out of a body's .npz file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dune_cli.errors import CheckpointError
from dune_cli.io.safe_read import MIB, read_npz

LIMIT_BYTES = 1024 * MIB  # SMPLX_NEUTRAL.npz unpacks to 250 MB


def read_arrays(path: Path, what: str, cure: str, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays `names` of the file, or all. Others are not touched, so pickled ones among them do no harm.

    Raises CheckpointError for what is no .npz file, damaged, over 1 GiB, lacks a name, or holds anything but numbers
    and texts under one; its sentence calls the file `what` and ends with `cure`.
    """
    try:
        return read_npz(path, what, names, LIMIT_BYTES, CheckpointError)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {cure}") from error
