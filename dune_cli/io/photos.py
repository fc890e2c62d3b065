"""Photos read as upright 8-bit RGB, from all usual file formats, bit depths and EXIF orientations."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from dune_cli.errors import DuneError, UserError
from dune_cli.io import exif, high_bit_depth
from dune_cli.io.high_bit_depth import to_8bit
from dune_cli.io.image_file import FILE_LIMIT_BYTES, check_size, decode, header
from dune_cli.io.orientation import UPRIGHT, from_tag, to_upright, turned_size
from dune_cli.io.safe_read import open_regular
from dune_cli.provenance import sha256_of

if TYPE_CHECKING:
    from PIL.Image import Image

SMALLEST_SIDE_PX = 16
XMP_WITHIN_BYTES = 1 << 20  # of a file's beginning


@dataclass(frozen=True)
class Photo:
    """A decoded photo: `rgb` (H, W, 3) uint8, EXIF orientation applied.

    `exif_focal_px` is the focal length in pixels of `rgb` from the EXIF tags, None without usable tags. `orientation`
    (EXIF, 1 to 8) is that of the stored pixels. `panorama`: whether its XMP says that it is a sphere.
    """

    path: Path
    rgb: np.ndarray
    sha256: str
    exif_focal_px: float | None = None
    orientation: int = UPRIGHT
    panorama: bool = False

    @property
    def width(self) -> int:
        return self.rgb.shape[1]

    @property
    def height(self) -> int:
        return self.rgb.shape[0]

    @property
    def info(self) -> PhotoInfo:
        """The photo without its pixels."""
        return PhotoInfo(
            self.path, self.width, self.height, self.sha256, self.exif_focal_px, self.orientation, self.panorama
        )


@dataclass(frozen=True)
class PhotoInfo:
    """A `Photo` without its pixels, to keep of many photos."""

    path: Path
    width: int
    height: int
    sha256: str
    exif_focal_px: float | None = None
    orientation: int = UPRIGHT
    panorama: bool = False


@dataclass(frozen=True)
class PhotoHeader:
    """The size in pixels of the upright photo, the EXIF orientation (1 to 8) of its stored pixels, and whether its XMP
    says that it is a sphere."""

    width: int
    height: int
    orientation: int
    panorama: bool = False


def read_photo(path: str | Path) -> Photo:
    """Reads any common image file as 8-bit RGB with its EXIF orientation applied.

    Images of 10 to 16 bits and of floats are scaled to 8 bits by what they hold (high_bit_depth.py). Transparent ones
    are composited over white. Of animated and multi-page files the first image is read. Colour profiles are ignored.
    UserError (with the path) for a file that is missing, unreadable, damaged, no image, under 16 px a side or over 200
    megapixels; PackageMissing for HEIC without the package pi-heif.
    """
    path = Path(path)
    _check_file(path)
    try:
        with open_regular(path, "a photo", FILE_LIMIT_BYTES) as file:
            rgb, tags, orientation = _read(path, file)
            panorama = is_panorama(file, rgb.shape[1], rgb.shape[0])
        focal_px = exif.focal_px(tags, rgb.shape[1], rgb.shape[0])
        return Photo(path, rgb, sha256_of(path), focal_px, orientation, panorama)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def read_small(path: str | Path, least_px: int) -> np.ndarray:
    """A photo to look at: (H, W, 3) uint8 as `read_photo` reads it, or a half, a quarter or an eighth of that, whose
    long side has at least twice `least_px`.

    Of JPEG only the low frequencies are decoded then (libjpeg's scaled inverse DCT). Reduced further to `least_px`, it
    differs from the whole photo by less than 1 of 255 in the mean. UserError as `read_photo`.
    """
    path = Path(path)
    _check_file(path)
    try:
        with open_regular(path, "a photo", FILE_LIMIT_BYTES) as file:
            return _read(path, file, 2 * least_px)[0]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def read_header(path: str | Path) -> PhotoHeader | None:
    """A photo's size and orientation without decoding it; None if it cannot be read (`read_photo` raises why)."""
    try:
        with open_regular(path, "a photo", FILE_LIMIT_BYTES) as file:
            high = high_bit_depth.read_header(Path(path), file)
            if high is not None and high.only_opencv:
                orientation = from_tag(high.exif.get(exif.ORIENTATION))
                return PhotoHeader(*turned_size(high.width, high.height, orientation), orientation)
            (width, height), format, orientation = header(
                Path(path), file, lambda image: (image.size, image.format, exif.stored_orientation(image))
            )
            panorama = is_panorama(file, width, height)
    except (DuneError, OSError):
        return None
    if format != "TIFF":  # Pillow gives the size of the upright TIFF
        width, height = turned_size(width, height, orientation)
    return PhotoHeader(width, height, orientation, panorama)


def read_infos(paths: Sequence[Path]) -> list[PhotoInfo] | None:
    """What the photos' headers tell, without hashes and EXIF; None where one cannot be read (`read_photo` says why)."""
    headers = [(path, read_header(path)) for path in paths]
    found = [
        PhotoInfo(path, one.width, one.height, "", None, one.orientation, one.panorama)
        for path, one in headers
        if one is not None
    ]
    return found if len(found) == len(headers) else None


def is_panorama(file: BinaryIO, width: int, height: int) -> bool:
    """Whether an image of `width` x `height` px is an equirectangular panorama of the whole sphere: twice as wide as
    high, and its XMP says so (Google, "Photo Sphere XMP Metadata": GPano:ProjectionType)."""
    if not is_sphere_shaped(width, height):
        return False
    file.seek(0)
    head = file.read(XMP_WITHIN_BYTES)
    at = head.find(b"GPano:ProjectionType")
    return at >= 0 and b"equirectangular" in head[at : at + 100].lower()


def is_sphere_shaped(width: int, height: int) -> bool:
    """Whether an image can be an equirectangular panorama of the whole sphere: twice as wide as high."""
    return abs(width - 2 * height) <= 0.01 * width


def decode_photo(data: bytes, name: str | Path) -> np.ndarray:
    """An encoded image in memory, as `read_photo` reads a file: (H, W, 3) uint8. UserError (with `name`) as there."""
    path = Path(name)
    if not data:
        raise UserError(f"{path} is empty (0 bytes); copy or download it again")
    return _read(path, io.BytesIO(data))[0]


def photo_from_bytes(data: bytes, name: str | Path) -> Photo:
    """The photo that `read_photo` reads of a file with the content `data`. `name` names it. UserError as there."""
    path = Path(name)
    if not data:
        raise UserError(f"{path} is empty (0 bytes); copy or download it again")
    file = io.BytesIO(data)
    rgb, tags, orientation = _read(path, file)
    height, width = rgb.shape[:2]
    sha256 = hashlib.sha256(data).hexdigest()
    focal_px = exif.focal_px(tags, width, height)
    return Photo(path, rgb, sha256, focal_px, orientation, is_panorama(file, width, height))


def _read(path: Path, file: BinaryIO, least_px: int | None = None) -> tuple[np.ndarray, dict[int, Any], int]:
    """The upright image (H, W, 3) uint8, its EXIF tags, and the orientation of its stored pixels. least_px: a JPEG is
    decoded at the smallest scale whose long side has that."""
    high = high_bit_depth.read_header(path, file)
    if high is not None and high.only_opencv:
        check_size(path, high.width, high.height, SMALLEST_SIDE_PX)
        rgb = _high_bit_depth_rgb8(path, file)
        orientation = from_tag(high.exif.get(exif.ORIENTATION))
        return np.ascontiguousarray(to_upright(rgb, orientation)), exif.tags_of(high.exif, path), orientation
    stored: list[int] = []

    def pixels_and_tags(image: Image) -> tuple[np.ndarray, dict[int, Any]]:
        tags = exif.read_tags(image, path)
        return (_to_rgb8(path, image) if high is None else _high_bit_depth_rgb8(path, file)), tags

    def begun(image: Image) -> None:
        stored.append(exif.stored_orientation(image))
        if least_px is not None and image.format in ("JPEG", "MPO"):
            scale = least_px / max(image.size)
            image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))

    rgb, tags = decode(
        path,
        file,
        pixels_and_tags,
        smallest_side_px=SMALLEST_SIDE_PX,
        before=begun,
    )
    orientation = from_tag(tags.get(exif.ORIENTATION))  # what the decoder has not applied
    if high is not None and orientation == UPRIGHT:
        orientation = stored[0]  # Pillow has turned its own copy
    return (
        np.ascontiguousarray(to_upright(rgb, orientation)),
        tags,
        orientation if orientation != UPRIGHT else stored[0],
    )


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
        grey = to_8bit(np.asarray(image), path)
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


def _high_bit_depth_rgb8(path: Path, file: BinaryIO) -> np.ndarray:
    """The stored pixels (H, W, 3) uint8 of a file with more than 8 bits a channel; over white where transparent."""
    colours, alpha = high_bit_depth.read(path, file)
    rgb = to_8bit(colours, path)
    if rgb.ndim == 2:
        rgb = np.repeat(rgb[..., None], 3, axis=2)
    if alpha is None:
        return rgb
    return np.round(rgb * alpha[..., None] + 255 * (1 - alpha[..., None])).astype(np.uint8)
