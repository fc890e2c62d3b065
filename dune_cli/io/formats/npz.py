"""Arrays as a compressed NPZ, which numpy.load opens."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.io.formats import DepthData, SceneData
from dune_cli.io.outputs import atomic_path

CONTENT = ("arrays",)


def write_scene(path: Path, scene: SceneData) -> list[str]:
    """Everything as arrays."""
    arrays = scene.arrays or {}
    write_npz(path, **arrays)
    return list(arrays)


def write_depth(path: Path, depth: DepthData) -> dict[str, Any]:
    """The arrays `depth`, `K` and, where there is one, `confidence`; `camera_model` and `camera_params` of a photo with
    a lens."""
    extra = {} if depth.confidence is None else {"confidence": depth.confidence}
    if depth.lens is not None:
        extra |= {"camera_model": np.array(depth.lens.model), "camera_params": np.array(depth.lens.params)}
    write_npz(path, depth=depth.depth, K=depth.K, **extra)
    return {"invalid": "NaN"}


def write_npz(path: str | Path, /, **arrays: np.ndarray) -> None:
    """Writes the arrays under their names, which may be any (numpy's own function keeps `file` for itself).

    ValueError for arrays of Python objects, which would need pickle.
    """
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
