"""COLMAP models in, through pycolmap; a broken one gives one sentence."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dune_cli import optional
from dune_cli.errors import UserError

if TYPE_CHECKING:
    import pycolmap

PLACES = ("", "sparse/0", "sparse")  # where COLMAP's own tools leave a model below the folder that a user names
POINT_BYTES, ELEMENT_BYTES = struct.calcsize("<Q3d3BdQ"), 8


def open_model(folder: str | Path) -> pycolmap.Reconstruction:
    """The model (binary or text) in `folder`, or in its `sparse/0` or `sparse`. UserError for none, or a broken one."""
    pycolmap = optional.require("pycolmap", "a COLMAP model")
    model = model_folder(folder)
    if model is None:
        raise UserError(f"{folder} holds no COLMAP model; name that of cameras, images and points3D (.bin, .txt)")
    _check_points(model / "points3D.bin")
    try:
        return pycolmap.Reconstruction(str(model))
    except (ValueError, IndexError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"the COLMAP model in {model} is broken ({reason}); copy it again or write it anew") from error


def model_folder(folder: str | Path) -> Path | None:
    """The folder itself or one of the usual places below it, whichever has an images file; None for none."""
    places = [Path(folder).expanduser() / place for place in PLACES]
    return next((p for p in places if any((p / f"images.{end}").is_file() for end in ("bin", "txt"))), None)


def world_from_cam(image: pycolmap.Image) -> np.ndarray:
    """(4, 4) float64 pose of a registered image."""
    return np.vstack([image.cam_from_world().inverse().matrix(), [0.0, 0.0, 0.0, 1.0]])


def _check_points(path: Path) -> None:
    """pycolmap believes a cut or foreign points3D.bin and reads for ever; so its records are counted first."""
    if not path.is_file():
        return
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    whole = len(data) >= 8
    if whole:
        (count,) = struct.unpack_from("<Q", data)
        at = 8
        whole = count * POINT_BYTES <= len(data) - at
        for _ in range(count if whole else 0):
            if at + POINT_BYTES > len(data):
                whole = False
                break
            (length,) = struct.unpack_from("<Q", data, at + POINT_BYTES - 8)
            at += POINT_BYTES + ELEMENT_BYTES * length
        whole = whole and at == len(data)
    if not whole:
        raise UserError(f"the COLMAP model's {path} is cut off or damaged; copy it again or write it anew")
