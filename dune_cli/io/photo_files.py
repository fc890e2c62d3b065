"""Photos written for other tools, as JPEG or PNG by the ending of their name, and copied where they need no change."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dune_cli.errors import DuneError
from dune_cli.io import exif, high_bit_depth
from dune_cli.io.image_file import FILE_LIMIT_BYTES, header
from dune_cli.io.orientation import UPRIGHT
from dune_cli.io.png import save_png
from dune_cli.io.safe_read import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
QUALITY = 95  # of JPEG, colours at full resolution


def written_name(name: str) -> str:
    """The name under which a photo is written: its own if that is of a JPEG or PNG, else with .png added."""
    return name if Path(name).suffix.lower() in FORMATS else f"{name}.png"


def is_plain(path: Path) -> bool:
    """Whether every program sees in the file what `read_photo` does: upright 8-bit RGB without transparency, in the
    format that its ending names."""

    def facts(image: Image) -> tuple[bool, str | None]:
        upright = exif.stored_orientation(image) == UPRIGHT
        return upright and image.mode == "RGB" and "transparency" not in image.info, image.format

    try:
        with open_regular(path, "a photo", FILE_LIMIT_BYTES) as file:
            if high_bit_depth.read_header(path, file) is not None:
                return False
            plain, kind = header(path, file, facts)
    except (DuneError, OSError):
        return False
    return plain and kind == FORMATS.get(path.suffix.lower())


def write_photo(path: Path, rgb: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 as the ending of `path` says, one of FORMATS; equal arrays make equal files."""
    if FORMATS[path.suffix.lower()] == "PNG":
        save_png(path, rgb)
        return
    from PIL import Image

    buffer = io.BytesIO()  # Pillow writing to a file hides the reason (a full disk) of a failure
    Image.fromarray(np.ascontiguousarray(rgb)).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    path.write_bytes(buffer.getbuffer())
