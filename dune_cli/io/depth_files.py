"""Depth maps: as 16-bit values and in colours for PNG, and read from PNG and NPZ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dune_cli.errors import UserError
from dune_cli.io.colormaps import COLORMAPS, apply_colormap, between_percentiles
from dune_cli.io.image_file import FILE_LIMIT_BYTES, LARGEST_PIXELS, decode
from dune_cli.io.json_files import Fields
from dune_cli.io.safe_read import open_regular, read_json, read_npz

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
MILLIMETRES = 1000.0  # the PNG scale that most tools expect
KITTI = 256.0  # KITTI's, which reaches 256 m
SUFFIXES = (".png", ".npz")
FARTHEST = 1e7  # metres: beyond it the numbers are no depths
NPZ_FORM = 'a depth file: an NPZ with an array "depth" (H, W) in metres'


def to_png16(depth: np.ndarray) -> tuple[np.ndarray, float]:
    """(pixels (H, W) uint16, scale): depth in metres is pixel / scale; 0 where `depth` is not finite and positive.

    The scale is 1000 up to 65.5 m, 256 up to 255.9 m, else the one that maps the farthest pixel to 65535.
    """
    valid = valid_depth(depth)
    farthest = float(depth[valid].max()) if valid.any() else 0.0
    scale = next((s for s in (MILLIMETRES, KITTI) if farthest * s <= 65535), 65535 / farthest if farthest else 1.0)
    steps = np.rint(np.where(valid, depth, 0).astype(np.float64) * scale)
    return np.where(valid, steps.clip(1, 65535), 0).astype(np.uint16), scale


def valid_depth(depth: np.ndarray) -> np.ndarray:
    """(H, W) bool: finite and in front of the camera."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(depth) & (depth > 0)


def colored(depth: np.ndarray, colormap: str) -> np.ndarray:
    """(H, W, 3) uint8: inverse depth between its 2nd and 98th percentile, near bright; black where there is none.

    `colormap` is one of COLORMAPS (ValueError otherwise).
    """
    if colormap not in COLORMAPS:
        raise ValueError(f"unknown colormap {colormap!r}; allowed: {', '.join(COLORMAPS)}")
    valid = valid_depth(depth)
    picture = np.zeros((*depth.shape, 3), np.uint8)
    if not valid.any():
        return picture
    picture[valid] = apply_colormap(between_percentiles(1 / depth[valid].astype(np.float64)), colormap)
    return picture


def read_depth(path: str | Path, png_scale: float | None = None) -> np.ndarray:
    """(H, W) float64 depth z in metres, 0 or NaN where there is none.

    A 16-bit PNG holds metres times `png_scale`. None takes the scale of the `dune.depth/1` JSON beside it, else 1000.
    An NPZ holds metres as its array `depth`. UserError (with the path) for anything else.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() == ".npz":
        return _checked(path, _from_npz(path, png_scale))
    if path.suffix.lower() == ".png":
        return _checked(path, _from_png(path, png_scale))
    raise UserError(f"the depth map {path} has the ending {path.suffix or '(none)'}; allowed: {' '.join(SUFFIXES)}")


def _checked(path: Path, depth: np.ndarray) -> np.ndarray:
    """`depth` in range; infinite depth (the sky of many renderers) becomes NaN."""
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
    pixels = _decoded(path, np.asarray)
    return pixels / (_scale_beside(path) if png_scale is None else png_scale)


def check_png(path: Path) -> None:
    """UserError for a picture that holds no depth. The values are not looked at."""
    _decoded(path, lambda _: None)


def _decoded(path: Path, use: Callable[[Image], T]) -> T:
    def check(image: Image) -> None:
        if not image.mode.startswith("I"):
            raise UserError(f"the depth map {path} is a picture of kind {image.mode}; a 16-bit grey PNG is needed")

    with open_regular(path, "a depth map (a 16-bit PNG)", FILE_LIMIT_BYTES) as file:
        return decode(path, file, use, formats=["PNG"], allowed="a 16-bit grey PNG", before=check)


def _scale_beside(path: Path) -> float:
    """The scale of the `dune.depth/1` JSON beside the PNG; 1000 without one, or beside another program's JSON."""
    beside = path.with_suffix(".json")
    if not beside.exists():
        return MILLIMETRES
    try:
        document = read_json(beside)
        if (
            not isinstance(document, dict)
            or document.get("schema") != "dune.depth/1"
            or document.get("file") != path.name
        ):
            return MILLIMETRES
        return Fields(document, str(beside)).number("png_scale", low=1e-6, high=1e9)
    except UserError as error:
        raise UserError(f"the scale of the depth map {path} is unknown ({error}); give it by --depth-scale") from error
