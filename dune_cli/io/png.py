"""Pictures as PNG: 8-bit RGB or grey, 16-bit grey."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from dune_cli.io.atomic import atomic_path


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 RGB, (H, W) uint8 grey, or (H, W) uint16 grey. ValueError for anything else."""
    from PIL import Image

    rgb = picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8
    grey = picture.ndim == 2 and picture.dtype in (np.uint8, np.uint16)
    if not (rgb or grey) or 0 in picture.shape:
        raise ValueError(
            f"a PNG takes (H, W, 3) uint8, (H, W) uint8 or (H, W) uint16, got {picture.shape} {picture.dtype}"
        )
    buffer = io.BytesIO()  # Pillow writing to a file hides the reason (a full disk) of a failure
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format="PNG")
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
