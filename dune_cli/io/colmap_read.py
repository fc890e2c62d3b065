"""COLMAP models in, through pycolmap; a broken one gives one sentence."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dune_cli import optional
from dune_cli.errors import UserError

if TYPE_CHECKING:
    import pycolmap

PLACES = ("", "sparse/0", "sparse")  # where COLMAP's own tools leave a model below the folder that a user names
COUNT_BYTES, ELEMENT_BYTES = 8, 8
POINT_BYTES, IMAGE_BYTES, POINT2D_BYTES = (struct.calcsize(record) for record in ("<Q3d3BdQ", "<I7dI", "<2dq"))


def open_model(folder: str | Path) -> pycolmap.Reconstruction:
    """The model (binary or text) in `folder`, or in its `sparse/0` or `sparse`. UserError for none, or a broken one."""
    pycolmap = optional.import_pycolmap("a COLMAP model")
    model = model_folder(folder)
    if model is None:
        raise UserError(f"{folder} holds no COLMAP model; name that of cameras, images and points3D (.bin, .txt)")
    _check(model)
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


def _check(model: Path) -> None:
    """pycolmap believes cut or foreign binary files and reads for ever; so their records are counted first."""
    for name, after in RECORDS.items():
        path = model / name
        if not path.is_file():
            continue
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        if not _is_whole(data, after):
            raise UserError(f"the COLMAP model's {path} is broken (cut off or damaged); copy it again or write it anew")


def _is_whole(data: bytes, after: Callable[[bytes, int], int]) -> bool:
    """Whether the records that the first eight bytes count end where the file does."""
    if len(data) < COUNT_BYTES:
        return False
    (count,) = struct.unpack_from("<Q", data)
    at = COUNT_BYTES
    for _ in range(min(count, len(data))):
        try:
            at = after(data, at)
        except (struct.error, ValueError):
            return False
        if at > len(data):
            return False
    return count <= len(data) and at == len(data)


def _after_image(data: bytes, at: int) -> int:
    end_of_name = data.index(b"\0", at + IMAGE_BYTES)
    (points,) = struct.unpack_from("<Q", data, end_of_name + 1)
    return end_of_name + 1 + COUNT_BYTES + POINT2D_BYTES * points


def _after_point(data: bytes, at: int) -> int:
    (length,) = struct.unpack_from("<Q", data, at + POINT_BYTES - COUNT_BYTES)
    return at + POINT_BYTES + ELEMENT_BYTES * length


RECORDS: dict[str, Callable[[bytes, int], int]] = {"images.bin": _after_image, "points3D.bin": _after_point}
