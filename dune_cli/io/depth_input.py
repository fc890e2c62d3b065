"""Depth maps in: what users and `dune depth` have of a photo's depth, in metres."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from dune_cli.errors import UserError
from dune_cli.io.depth_files import MILLIMETRES
from dune_cli.io.safe_read import read_json

SUFFIXES = (".png", ".npz")


def read_depth(path: str | Path, png_scale: float | None = None) -> np.ndarray:
    """(H, W) float64 depth z in metres, 0 or NaN where there is none.

    A 16-bit PNG holds metres times `png_scale`; None: what the `dune.depth/1` JSON beside it says, else 1000. An NPZ
    holds metres as its array `depth`. UserError (with the path) for anything else.
    """
    path = Path(path).expanduser()
    try:
        if path.suffix.lower() == ".npz":
            return _from_npz(path, png_scale)
        if path.suffix.lower() == ".png":
            return _from_png(path, png_scale)
    except OSError as error:
        raise UserError(f"cannot read the depth map {path}: {error.strerror or error}") from error
    raise UserError(f"the depth map {path} has the ending {path.suffix or '(none)'}; allowed: {' '.join(SUFFIXES)}")


def _from_npz(path: Path, png_scale: float | None) -> np.ndarray:
    if png_scale is not None:
        raise UserError(f"--depth-scale is for PNG files; {path} holds metres: leave it out")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            depth = arrays["depth"]
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f'{path} is no depth file: an NPZ with an array "depth" (H, W) in metres is needed') from error
    if depth.ndim != 2 or depth.dtype.kind not in "fiu":
        raise UserError(f'the array "depth" of {path} is {depth.shape} {depth.dtype}; (H, W) numbers are needed')
    return depth.astype(np.float64)


def _from_png(path: Path, png_scale: float | None) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.asarray(image)
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is no PNG file, or damaged; a 16-bit PNG is needed") from error
    if pixels.ndim != 2 or not mode.startswith("I"):
        raise UserError(f"the depth map {path} is a picture of kind {mode}; a 16-bit grey PNG is needed")
    return pixels / (png_scale or _scale_beside(path))


def _scale_beside(path: Path) -> float:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return MILLIMETRES
    try:
        facts = read_json(beside, "the depth map's JSON")
    except UserError:
        return MILLIMETRES
    ours = isinstance(facts, dict) and facts.get("schema") == "dune.depth/1" and facts.get("file") == path.name
    return float(facts["png_scale"]) if ours else MILLIMETRES
