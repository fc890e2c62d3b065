"""Depth maps in: what users and `dune depth` have of a photo's depth, in metres."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dune_cli.errors import UserError
from dune_cli.io.depth_files import MILLIMETRES
from dune_cli.io.fields import Fields
from dune_cli.io.picture_file import FILE_LIMIT_BYTES, LARGEST_PIXELS, decode
from dune_cli.io.safe_read import open_regular, read_json, read_npz

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".npz")
FARTHEST = 1e7  # metres: beyond it the numbers are no depths
NPZ_FORM = 'a depth file: an NPZ with an array "depth" (H, W) in metres'


def read_depth(path: str | Path, png_scale: float | None = None) -> np.ndarray:
    """(H, W) float64 depth z in metres, 0 or NaN where there is none.

    A 16-bit PNG holds metres times `png_scale`; None: what the `dune.depth/1` JSON beside it says, else 1000. An NPZ
    holds metres as its array `depth`. UserError (with the path) for anything else.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() == ".npz":
        return _checked(path, _from_npz(path, png_scale))
    if path.suffix.lower() == ".png":
        return _checked(path, _from_png(path, png_scale))
    raise UserError(f"the depth map {path} has the ending {path.suffix or '(none)'}; allowed: {' '.join(SUFFIXES)}")


def _checked(path: Path, depth: np.ndarray) -> np.ndarray:
    """Infinite depth (the sky of many renderers) is none."""
    depth[np.isposinf(depth)] = np.nan
    low, high = float(np.nanmin(depth, initial=0)), float(np.nanmax(depth, initial=0))
    if low < 0 or high > FARTHEST:
        raise UserError(
            f"the depth map {path} holds values from {low:g} to {high:g} m; depth along the viewing axis is needed, "
            f"positive and at most {FARTHEST:g} m, and 0 where there is none"
        )
    return depth


def _from_npz(path: Path, png_scale: float | None) -> np.ndarray:
    if png_scale is not None:
        raise UserError(f"--depth-scale is for PNG files; {path} holds metres: leave it out")
    depth = read_npz(path, NPZ_FORM, ["depth"], LARGEST_PIXELS * 8)["depth"]
    if depth.ndim != 2 or depth.dtype.kind not in "fiu" or not 0 < depth.size <= LARGEST_PIXELS:
        raise UserError(f'the array "depth" of {path} is {depth.shape} {depth.dtype}; (H, W) numbers are needed')
    return depth.astype(np.float64, copy=False)


def _from_png(path: Path, png_scale: float | None) -> np.ndarray:
    def values(image: Image) -> np.ndarray:
        pixels = np.asarray(image)
        if pixels.ndim != 2 or not image.mode.startswith("I"):
            raise UserError(f"the depth map {path} is a picture of kind {image.mode}; a 16-bit grey PNG is needed")
        return pixels

    with open_regular(path, "a depth map (a 16-bit PNG)", FILE_LIMIT_BYTES) as file:
        pixels = decode(path, file, values, formats=["PNG"], allowed="a 16-bit grey PNG")
    return pixels / (_scale_beside(path) if png_scale is None else png_scale)


def _scale_beside(path: Path) -> float:
    """Of the `dune.depth/1` JSON with the PNG's name; another program's JSON says nothing."""
    beside = path.with_suffix(".json")
    if not beside.exists():
        return MILLIMETRES
    try:
        facts = read_json(beside)
        if not isinstance(facts, dict) or facts.get("schema") != "dune.depth/1" or facts.get("file") != path.name:
            return MILLIMETRES
        return Fields(facts, str(beside)).number("png_scale", low=1e-6, high=1e9)
    except UserError as error:
        raise UserError(f"the scale of the depth map {path} is unknown ({error}); give it by --depth-scale") from error
