"""Arrays as a compressed NPZ, which numpy.load opens."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dune_cli.io.atomic import atomic_path


def write_npz(path: str | Path, /, **arrays: np.ndarray) -> None:
    """Writes the arrays under their names. ValueError for arrays of Python objects, which would need pickle."""
    converted = {name: np.asarray(array) for name, array in arrays.items()}
    objects = [name for name, array in converted.items() if array.dtype.hasobject]
    if objects:
        raise ValueError(f"arrays of Python objects cannot be saved: {', '.join(objects)}")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **converted)
