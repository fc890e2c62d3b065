"""PNG and TIFF with more than 8 bits a channel, read by OpenCV and scaled to 8 bits by what they hold.

Pillow truncates such colours to 8 bits or does not read them. Files of 16 bits often hold fewer: a camera's 10, 12 or
14 bits, a thermal sensor's counts. Divided by 257 such an image is nearly black. Where the values fill a usual number
of bits, that number is the scale, so that photos of one camera are scaled alike. Where fewer than MIN_LEVELS grey
levels would remain, the middle 99 % of the values are stretched, each photo by its own: matchers normalise contrast.
The same file always gives the same image.
"""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dune_cli import console, optional
from dune_cli.errors import UserError
from dune_cli.io.image_file import silent_stderr

PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
PNG_CHANNELS = {2: 3, 4: 2, 6: 4}  # colour type -> channels; 0 and 3 are grey and palettes
WIDTH, HEIGHT, BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION, SAMPLES_PER_PIXEL, FORMAT = (
    256,
    257,
    258,
    262,
    274,
    277,
    339,
)  # TIFF 6.0
SHORT = 3
FLOAT, GREY_OR_RGB = 3, (0, 1, 2)
NOT_READ = {
    b"\x76\x2f\x31\x01": "an OpenEXR",
    b"#?RADIANCE": "a Radiance HDR",
    b"#?RGBE": "a Radiance HDR",
}
BITS = (8, 10, 12, 14)  # that a file of 16 bits may hold
MIN_LEVELS = 32  # of 255 that the middle 99 % must span
MIDDLE = (0.5, 99.5)  # percentiles
FLOAT_MARGIN = 0.1  # of floats from 0 to 1: sharpening overshoots
OFFSET = 0.25  # floats whose darkest value is above this share of the brightest are no light (degrees, metres)
SAMPLES, PIECE = 2_000_000, 1_000_000
GAMMA = 2.2  # of light without bounds, for the screen


@dataclass(frozen=True)
class HighBitDepthHeader:
    """The header of a file with more than 8 bits a channel. `only_opencv`: Pillow cannot open such a file; `exif` then
    has its tags."""

    width: int
    height: int
    only_opencv: bool
    exif: Any | None = None


def read_header(path: Path, file: BinaryIO) -> HighBitDepthHeader | None:
    """The header; None for other images and for damaged headers. `file` is left at its beginning.

    UserError for floating-point formats that are not read.
    """
    head = file.read(32)
    file.seek(0)
    for magic, what in NOT_READ.items():
        if head.startswith(magic):
            raise UserError(
                f"{path} is {what} picture, which is not read; save it as a 32-bit float TIFF or a 16-bit PNG"
            )
    if head.startswith(PNG) and len(head) >= 26:
        width, height, bits, colour = struct.unpack(">IIBB", head[16:26])
        return HighBitDepthHeader(width, height, False) if bits == 16 and colour in PNG_CHANNELS else None
    if head[:4] in TIFF:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's warnings on odd metadata
                return _tiff_header(file)
        except Exception:  # a damaged directory provokes anything; reading by Pillow reports it
            return None
        finally:
            file.seek(0)
    return None


def read(path: Path, file: BinaryIO) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours (H, W) grey or (H, W, 3) RGB with the file's values, and alpha (H, W) in [0, 1] or None. UserError for a
    damaged file and for kinds of colours that are not read."""
    cv2 = optional.require("cv2", f"the colours of {path}")
    file.seek(0)
    try:
        with silent_stderr():
            image = cv2.imdecode(np.frombuffer(_as_stored(file.read()), np.uint8), cv2.IMREAD_UNCHANGED)
    except (cv2.error, struct.error) as error:
        raise UserError(f"{path} is damaged or cut off; copy or download it again") from error
    if image is None or image.dtype.kind not in "uif" or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise UserError(
            f"{path} is damaged, or its colours are of a kind that is not read; "
            "save it with 8 or 16 bits a channel, or as 32-bit floats"
        )
    if image.ndim == 2 or image.shape[2] == 1:
        return image.reshape(image.shape[:2]), None
    colours = image[..., 2::-1]
    if image.shape[2] == 3:
        return colours, None
    alpha = image[..., 3].astype(np.float64)
    if image.dtype.kind != "f":
        alpha /= np.iinfo(image.dtype).max
    return colours, np.nan_to_num(alpha).clip(0, 1)


def _as_stored(data: bytes) -> bytes:
    """A TIFF file without its orientation, which OpenCV would apply; other files as they are."""
    if data[:4] not in TIFF[:2]:
        return data
    order = "<" if data[:2] == b"II" else ">"
    (first,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, first)
    for at in range(first + 2, first + 2 + 12 * entries, 12):
        if struct.unpack_from(order + "H", data, at)[0] == ORIENTATION:
            upright = struct.pack(order + "HHIHH", ORIENTATION, SHORT, 1, 1, 0)
            return data[:at] + upright + data[at + 12 :]
    return data


def _tiff_header(file: BinaryIO) -> HighBitDepthHeader | None:
    from PIL import Image

    exif = Image.Exif()
    exif.load_from_fp(file)
    samples, bits = int(exif.get(SAMPLES_PER_PIXEL, 1)), exif.get(BITS_PER_SAMPLE, 1)
    bits = max(bits) if isinstance(bits, tuple) else bits
    kind = exif.get(FORMAT, 1)
    is_float = FLOAT in (kind if isinstance(kind, tuple) else (kind,))
    if (
        int(exif.get(PHOTOMETRIC, 1)) not in GREY_OR_RGB
        or bits <= 8
        or (samples == 1 and not (is_float and bits != 32))
    ):
        return None
    return HighBitDepthHeader(int(exif[WIDTH]), int(exif[HEIGHT]), is_float or bits > 16, exif)


def to_8bit(values: np.ndarray, name: Path) -> np.ndarray:
    """`values` (H, W) or (H, W, 3), integers of 16 or 32 bits or floats, as uint8; one scale for all channels.

    Integers are divided by 65535 or by the largest value of the 8, 10, 12 or 14 bits that they fill, or stretched.
    Floats from 0 to 1 are multiplied by 255. Of floats without bounds, light is scaled from 0 to its 99.5th percentile
    with gamma 2.2, and others are stretched. NaN becomes black. A note describes any scale but the plain one.
    UserError without any finite value.
    """
    if values.dtype.kind == "f":
        return _floats(values, name)
    return _integers(values, name)


def _integers(values: np.ndarray, name: Path) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    dark, bright = _middle(values)
    if low >= 0 and high <= 65535:
        for bits in (*BITS, 16):
            top = 2**bits - 1
            if high <= top:
                break
        if (bright - dark) * 255 >= MIN_LEVELS * top or low == high:
            if bits < 16 and low != high:
                _note(name, f"values from {low} to {high} are read as {bits} bits", "bits")
            top = 65535 if low == high else top
            return _scaled(values, 0, top)
    # no more than one level for a count
    bright = max(bright, dark + 255)
    _note(
        name,
        f"values from {low} to {high}: {dark:g} to {bright:g} (the middle 99 %) become black to white",
        "stretched",
    )
    return _scaled(values, dark, bright)


def _floats(values: np.ndarray, name: Path) -> np.ndarray:
    finite = np.isfinite(values)
    if not finite.any():
        raise UserError(f"{name} holds no finite value; save it again")
    if not finite.all():
        _note(name, f"{int((~finite).sum())} values that are not finite become black or white", "not finite")
        inner = values[finite]
        values = np.nan_to_num(values, nan=float(inner.min()), posinf=float(inner.max()), neginf=float(inner.min()))
    else:
        inner = values
    low, high = float(inner.min()), float(inner.max())
    dark, bright = _middle(inner)
    span = f"values from {low:.4g} to {high:.4g}"
    is_unit = low >= -FLOAT_MARGIN and high <= 1 + FLOAT_MARGIN
    if is_unit and (bright - dark >= MIN_LEVELS / 255 or low == high):
        return _scaled(values, 0, 1)
    if low >= 0 and high > 1 and high <= 65535 and bool((inner == np.round(inner)).all()):
        return _integers(values.astype(np.int64), name)
    if bright <= dark:
        dark, bright = low, high if high > low else low + 1
    if low >= 0 and dark <= OFFSET * bright:
        text = f"{span}: 0 to {bright:.4g} (the 99.5th percentile) become black to white, with gamma {GAMMA:g}"
        _note(name, text, "light")
        return _scaled(values, 0, bright, GAMMA)
    _note(name, f"{span}: {dark:.4g} to {bright:.4g} (the middle 99 %) become black to white", "stretched")
    return _scaled(values, dark, bright)


def _middle(values: np.ndarray) -> tuple[float, float]:
    step = max(1, round((values.size / SAMPLES) ** 0.5)) if values.ndim > 1 else max(1, values.size // SAMPLES)
    sample = values[::step, ::step] if values.ndim > 1 else values[::step]
    dark, bright = np.percentile(sample, MIDDLE)
    return float(dark), float(bright)


def _scaled(values: np.ndarray, dark: float, bright: float, gamma: float = 1.0) -> np.ndarray:
    """uint8 levels, some rows at a time: 200 megapixels take gigabytes as float64."""
    levels = np.empty(values.shape, np.uint8)
    rows = max(1, PIECE // values[0].size)
    for first in range(0, len(values), rows):
        share = (values[first : first + rows].astype(np.float64) - dark) / (bright - dark)
        share = share.clip(0, 1)
        levels[first : first + rows] = np.round(255 * (share if gamma == 1 else share ** (1 / gamma)))
    return levels


def _note(name: Path, text: str, kind: str) -> None:
    console.note_once(f"{name}: {text}", kind=f"value range, {kind}")
