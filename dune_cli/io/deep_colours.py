"""Colours of more than 8 bits a channel in PNG and TIFF by OpenCV: Pillow cuts them to 8 bits or does not read them."""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dune_cli import optional
from dune_cli.errors import UserError
from dune_cli.io.picture_file import silent_stderr

PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
PNG_CHANNELS = {2: 3, 4: 2, 6: 4}  # colour type -> channels; 0 and 3 are grey and palettes
WIDTH, HEIGHT, BITS, PHOTOMETRIC, ORIENTATION, SAMPLES, FORMAT = 256, 257, 258, 262, 274, 277, 339  # TIFF 6.0
SHORT = 3
FLOAT, GREY_OR_RGB = 3, (0, 1, 2)
NOT_READ = {
    b"\x76\x2f\x31\x01": "an OpenEXR",
    b"#?RADIANCE": "a Radiance HDR",
    b"#?RGBE": "a Radiance HDR",
}


@dataclass(frozen=True)
class DeepColours:
    """What the header says. only_here: Pillow cannot open such a file at all; `exif` has its tags then."""

    width: int
    height: int
    only_here: bool
    exif: Any | None = None


def look(path: Path, file: BinaryIO) -> DeepColours | None:
    """None for pictures of other kinds, and for damaged headers. `file` is left at its beginning.

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
        return DeepColours(width, height, False) if bits == 16 and colour in PNG_CHANNELS else None
    if head[:4] in TIFF:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
                return _look_at_tiff(file)
        except Exception:  # a damaged directory provokes anything; Pillow's road has the sentence for it
            return None
        finally:
            file.seek(0)
    return None


def read(path: Path, file: BinaryIO) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours (H, W) grey or (H, W, 3) RGB as the file has them, and alpha (H, W) in [0, 1] or None. UserError."""
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


def _look_at_tiff(file: BinaryIO) -> DeepColours | None:
    from PIL import Image

    exif = Image.Exif()
    exif.load_from_fp(file)
    samples, bits = int(exif.get(SAMPLES, 1)), exif.get(BITS, 1)
    bits = max(bits) if isinstance(bits, tuple) else bits
    kind = exif.get(FORMAT, 1)
    is_float = FLOAT in (kind if isinstance(kind, tuple) else (kind,))
    if (
        int(exif.get(PHOTOMETRIC, 1)) not in GREY_OR_RGB
        or bits <= 8
        or (samples == 1 and not (is_float and bits != 32))
    ):
        return None
    return DeepColours(int(exif[WIDTH]), int(exif[HEIGHT]), is_float or bits > 16, exif)
