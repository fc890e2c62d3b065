"""Images as PNG: 8-bit RGB or grey, 16-bit grey, and class maps with a palette."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dune_cli.io.outputs import atomic_path

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_CLASSES = 256


def save_png(path: str | Path, image: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 RGB, (H, W) uint8 grey, or (H, W) uint16 grey. ValueError for anything else."""
    content = png_bytes(image)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def png_bytes(image: np.ndarray) -> bytes:
    """The content of the file that `save_png` writes."""
    from PIL import Image

    rgb = image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
    grey = image.ndim == 2 and image.dtype in (np.uint8, np.uint16)
    if not (rgb or grey) or 0 in image.shape:
        raise ValueError(f"a PNG takes (H, W, 3) uint8, (H, W) uint8 or (H, W) uint16, got {image.shape} {image.dtype}")
    return _encoded(Image.fromarray(np.ascontiguousarray(image)))


def class_colors(classes: int) -> np.ndarray:
    """(classes, 3) uint8 distinct colours: PASCAL VOC's, the bits of the class number spread over red, green, blue."""
    if not 0 < classes <= MAX_CLASSES:
        raise ValueError(f"a palette has 1 to {MAX_CLASSES} colours, not {classes}")
    colors = np.zeros((classes, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            has = np.arange(classes) >> (3 * bit + channel) & 1
            colors[:, channel] |= (has << (7 - bit)).astype(np.uint8)
    return colors


def write_class_png(path: str | Path, classes: np.ndarray, colors: np.ndarray) -> None:
    """Writes (H, W) class numbers as an 8-bit PNG: pixel values are the numbers, `colors` (N, 3) uint8 is the palette.

    ValueError for a number without a colour.
    """
    from PIL import Image

    if (
        classes.ndim != 2
        or 0 in classes.shape
        or len(colors) > MAX_CLASSES
        or not 0 <= classes.min() <= classes.max() < len(colors)
    ):
        raise ValueError(f"class numbers (H, W) must lie below the {len(colors)} colours, at most {MAX_CLASSES}")
    image = Image.fromarray(np.ascontiguousarray(classes, np.uint8), mode="P")
    image.putpalette(np.ascontiguousarray(colors, np.uint8).tobytes())
    content = _encoded(image)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def class_overlay(rgb: np.ndarray, classes: np.ndarray, colors: np.ndarray, share: float = 0.5) -> np.ndarray:
    """(H, W, 3) uint8: the photo with each pixel's class colour at `share`, and dark lines between classes."""
    picture = rgb * np.float32(1 - share)
    picture += colors[classes] * np.float32(share)
    border = np.zeros(classes.shape, bool)
    border[1:] |= classes[1:] != classes[:-1]
    border[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    picture[border] *= 0.4
    return np.rint(picture).astype(np.uint8)


def _encoded(image: Image) -> bytes:
    """In memory: Pillow writing to a file hides the reason (a full disk) of a failure."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
