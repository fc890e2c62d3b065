"""Photos that are stored turned, with the EXIF tag that turns them back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dune_cli.io.orientation import to_stored


def save_turned(path: Path, upright: np.ndarray, orientation: int) -> None:
    """The picture (H, W, 3) uint8, stored as `orientation` says. JPEG at the highest quality, else without loss."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(to_stored(upright, orientation))).save(path, exif=exif, quality=98)
