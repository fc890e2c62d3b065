"""Photos in: every file format, bit depth and orientation that people have, as 8-bit RGB, or one clear sentence."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from dune_cli.errors import UserError
from dune_cli.io import exif
from dune_cli.io.picture_file import FILE_LIMIT_BYTES, decode
from dune_cli.io.safe_read import open_regular
from dune_cli.provenance import sha256_of

if TYPE_CHECKING:
    from PIL.Image import Image

SMALLEST_SIDE_PX = 16


@dataclass(frozen=True)
class Photo:
    """A decoded photo: `rgb` (H, W, 3) uint8, EXIF orientation applied.

    `exif_focal_px` is the focal length in pixels of `rgb` from the EXIF tags, None where they do not say.
    """

    path: Path
    rgb: np.ndarray
    sha256: str
    exif_focal_px: float | None = None

    @property
    def width(self) -> int:
        return self.rgb.shape[1]

    @property
    def height(self) -> int:
        return self.rgb.shape[0]

    @property
    def facts(self) -> PhotoFacts:
        """What is known of it without its picture."""
        return PhotoFacts(self.path, self.width, self.height, self.sha256, self.exif_focal_px)


@dataclass(frozen=True)
class PhotoFacts:
    """A `Photo` without the picture, to keep where there are many."""

    path: Path
    width: int
    height: int
    sha256: str
    exif_focal_px: float | None = None


def read_photo(path: str | Path) -> Photo:
    """Reads any common picture as 8-bit RGB with its EXIF orientation applied.

    16-bit pictures are scaled to 8 bits; transparent ones are laid over white; of animated or many-page files the
    first picture is taken; colour profiles are ignored. HEIC needs the package pi-heif.
    UserError (with the path) for what is missing, unreadable, damaged, no picture, under 16 px or over 200 megapixels;
    PackageMissing for an HEIC photo without that package.
    """
    path = Path(path)
    _check_file(path)
    try:
        with open_regular(path, "a photo", FILE_LIMIT_BYTES) as file:
            rgb, tags = _read(path, file)
        return Photo(path, rgb, sha256_of(path), exif.focal_px(tags, rgb.shape[1], rgb.shape[0]))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def decode_photo(data: bytes, name: str | Path) -> np.ndarray:
    """An encoded picture in memory as `read_photo` would read it: (H, W, 3) uint8. UserError (with `name`) as there."""
    path = Path(name)
    if not data:
        raise UserError(f"{path} is empty (0 bytes); copy or download it again")
    return _read(path, io.BytesIO(data))[0]


def _read(path: Path, file: BinaryIO) -> tuple[np.ndarray, dict[int, Any]]:
    """The oriented (H, W, 3) uint8 picture and its EXIF tags."""

    def picture(image: Image) -> tuple[np.ndarray, dict[int, Any]]:
        tags = exif.read_tags(image, path)
        return _to_rgb8(path, image), tags

    rgb, tags = decode(path, file, picture, smallest_side_px=SMALLEST_SIDE_PX)
    return np.ascontiguousarray(_oriented(rgb, tags.get(exif.ORIENTATION))), tags


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder where a photo is expected; name a file in it")
        if not path.exists():
            raise UserError(f"no such file: {path}; check the path")
        if not path.is_file():
            raise UserError(f"{path} is no regular file; save the photo to a file first")
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes); copy or download it again")
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _to_rgb8(path: Path, image: Image) -> np.ndarray:
    """(H, W, 3) uint8 from any of Pillow's modes."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        grey = _grey8(path, np.asarray(image), image.mode)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.asarray(image)
    try:
        if image.mode in ("PA", "LA", "La", "RGBA", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))
    except ValueError as error:
        raise UserError(f"{path} has colours of the kind {image.mode}; save it as RGB first") from error


def _grey8(path: Path, values: np.ndarray, mode: str) -> np.ndarray:
    """16-bit values (modes I;16, and I where nothing is above 65535) / 257; floats in [0, 1] * 255."""
    low, high = float(values.min()), float(values.max())
    if mode == "F" and low >= 0 and high <= 1:
        return np.round(values * 255).astype(np.uint8)
    if mode != "F" and low >= 0 and high <= 65535:
        return np.round(values / 257).astype(np.uint8)
    raise UserError(f"{path} holds 32-bit values from {low:g} to {high:g}; save it with 8 or 16 bits a channel first")


def _oriented(rgb: np.ndarray, orientation: Any) -> np.ndarray:
    """`rgb` as the camera was held: EXIF orientations 2 to 8; anything else is upright."""
    turns = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a.swapaxes(0, 1)[::-1],
    }
    turn = turns.get(orientation) if isinstance(orientation, int) else None
    return rgb if turn is None else turn(rgb)
