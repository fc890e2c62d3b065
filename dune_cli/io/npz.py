"""Arrays as a compressed NPZ, which numpy.load opens."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from dune_cli.io.outputs import atomic_path


def write_npz(path: str | Path, /, **arrays: np.ndarray) -> None:
    """Writes the arrays under their names, which may be any (numpy's own function keeps `file` for itself).

    ValueError for arrays of Python objects, which would need pickle.
    """
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
