"""The names of classes, written into a picture of a class map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAST_SHARE = 0.01  # of the picture, of a class that is named
FONT_SHARE, SMALLEST_PX, LARGEST_PX = 0.028, 10, 32  # of the longer side
DARK, LIGHT = (0, 0, 0), (255, 255, 255)


def with_names(picture: np.ndarray, classes: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(h, w, 3) uint8: the picture with the name of each larger class of `classes` (H, W), the same picture at another
    size, where the class is widest. Without names the picture itself."""
    import cv2
    from PIL import Image, ImageDraw, ImageFont

    if not names:
        return picture
    height, width = picture.shape[:2]
    smaller = cv2.resize(classes.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    size_px = float(np.clip(FONT_SHARE * max(width, height), SMALLEST_PX, LARGEST_PX))
    font = ImageFont.load_default(size_px)
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    for index, pixels in enumerate(np.bincount(smaller.ravel(), minlength=len(names))[: len(names)]):
        if pixels < LEAST_SHARE * smaller.size:
            continue
        inside = np.pad((smaller == index).astype(np.uint8), 1)
        depth_px = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
        widest = np.argwhere(depth_px > depth_px.max() - 1)
        y, x = widest[np.linalg.norm(widest - widest.mean(0), axis=1).argmin()]
        half = font.getlength(names[index]) / 2 + 2
        at = _within(x, half, width), _within(y, size_px, height)
        stroke_px = max(1, round(size_px / 10))
        draw.text(at, names[index], LIGHT, font, anchor="mm", stroke_width=stroke_px, stroke_fill=DARK)
    return np.asarray(canvas)


def _within(place: float, margin: float, side: int) -> float:
    """The place, moved away from both ends where it lies too near to one."""
    return float(np.clip(place, margin, max(margin, side - margin)))
