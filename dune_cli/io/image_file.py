"""Image files decoded by Pillow: within limits, without its warnings, and with one sentence for damaged ones."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from dune_cli import console, optional
from dune_cli.errors import DuneError, UserError
from dune_cli.io.safe_read import MIB

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_PIXELS, LARGEST_SIDE_PX = 200_000_000, 100_000
FILE_LIMIT_BYTES = 4096 * MIB  # 200 megapixels of four 32-bit channels have 3.2 GB
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF", "HEIF", "TGA")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_T = TypeVar("_T")
_pillow_limit = threading.Lock()
_stderr = threading.RLock()  # the file descriptor is the whole process's
logging.getLogger("PIL").addHandler(logging.NullHandler())  # or its warnings on damaged files go to stderr


def decode(
    path: Path,
    file: BinaryIO,
    use: Callable[[Image], _T],
    formats: Sequence[str] = FORMATS,
    smallest_side_px: int = 1,
    allowed: str = "JPEG, PNG, TIFF, WebP, GIF, BMP, PPM, JPEG 2000, AVIF, HEIC",
    before: Callable[[Image], object] | None = None,
) -> _T:
    """`use(image)` of the first image in `file`, decoded. `path` names the file in messages. A note names the number
    of further images. `before` gets the image when only its header is read.

    UserError for a file in none of `formats` (messages list `allowed`), a damaged one, one smaller than
    `smallest_side_px` a side or over 200 megapixels, and for whatever the image provokes in `use`; PackageMissing for
    HEIC without pi-heif. OSError of the system passes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings on odd metadata
            with _open(path, file, formats, allowed) as image:
                check_size(path, *image.size, smallest_side_px)
                if before is not None:
                    before(image)
                _note_further_images(path, image)
                with _silent_libtiff(image):
                    image.seek(0)
                    image.load()
                return use(image)
    except DuneError:
        raise
    except Exception as error:  # whatever a damaged file provokes in Pillow's many decoders
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        if isinstance(error, MemoryError):
            reason = "it asks for more memory than there is"
        raise UserError(f"{path} is damaged or cut off ({reason}); copy or download it again") from error


def header(path: Path, file: BinaryIO, use: Callable[[Image], _T]) -> _T:
    """`use(image)` of an image of which only the header is read. UserError as `decode`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _open(path, file, FORMATS, ", ".join(FORMATS)) as image:
                return use(image)
    except DuneError:
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged or cut off ({type(error).__name__}); copy or download it again") from error


@contextmanager
def _own_size_limit() -> Iterator[None]:
    """Without Pillow's own limit (a warning at 89 and an error at 179 megapixels); ours names the size."""
    from PIL import Image

    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _open(path: Path, file: BinaryIO, formats: Sequence[str], allowed: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    head = file.read(16)
    file.seek(0)
    if "HEIF" in formats and head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        optional.require("pi_heif", f"the HEIC photo {path}").register_heif_opener()
    Image.init()
    try:
        with _own_size_limit():
            return Image.open(file, formats=[name for name in formats if name in Image.OPEN])
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path} is not a picture that can be read, or its beginning is damaged; allowed: {allowed}"
        ) from error


def check_size(path: Path, width: int, height: int, smallest_side_px: int) -> None:
    """UserError for an image that is too small or too large."""
    if min(width, height) < smallest_side_px:
        raise UserError(f"{path} has {width} x {height} px; at least {smallest_side_px} px a side are needed")
    if max(width, height) > LARGEST_SIDE_PX:
        raise UserError(f"{path} has {width} x {height} px; at most {LARGEST_SIDE_PX} px a side are read: cut it first")
    if width * height > LARGEST_PIXELS:
        raise UserError(
            f"{path} has {width} x {height} px ({width * height / 1e6:.0f} megapixels); at most "
            f"{LARGEST_PIXELS // 10**6} are read: reduce it first, for example to 8000 px on the long side"
        )


def _note_further_images(path: Path, image: Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # phones hide a second view or a depth map behind the photo
        console.note(f"{path} holds {frames} pictures; the first is used")


@contextmanager
def _silent_libtiff(image: Image) -> Iterator[None]:
    if image.format != "TIFF":
        yield
        return
    with silent_stderr():
        yield


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Silences libtiff, libpng and OpenCV, which write warnings on a damaged file to file descriptor 2. One thread at a
    time."""
    with _stderr:
        stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(devnull, 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            os.close(devnull)
