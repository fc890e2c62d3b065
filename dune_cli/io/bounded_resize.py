"""The preparation of Depth Anything 3 (docs/models/depth-anything-3.md, "Preparation"): two resizes on 8 bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dune_cli import optional
from dune_cli.errors import UserError
from dune_cli.geometry.cameras import resize_transform
from dune_cli.io.preprocess import Prepared

METHODS = ("upper_bound_resize", "upper_bound_crop", "lower_bound_resize", "lower_bound_crop")


def bounded_resize(rgb: np.ndarray, size_px: int, patch: int, method: str = METHODS[0]) -> Prepared:
    """`rgb` (H, W, 3) uint8 with its longest (upper_bound) or shortest (lower_bound) side at `size_px`, and sides that
    are multiples of `patch`: the nearest ones by a second resize (ties go up, one patch at least), or the next smaller
    ones by a centre crop.

    OpenCV's resizes, rounded to 8 bits each: areas are averaged to shrink, bicubic to grow (in the second resize where
    either side grows). UserError where a crop leaves less than a patch, and for another method.
    """
    if method not in METHODS:
        raise UserError(f"unknown preparation {method!r}; allowed: {', '.join(METHODS)}")
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise ValueError(f"rgb must be (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")
    height, width = rgb.shape[:2]
    bound = max(height, width) if method.startswith("upper") else min(height, width)
    new_height, new_width = height, width
    if bound != size_px:
        scale = size_px / bound
        new_height, new_width = (max(1, round(side * scale)) for side in (height, width))
    image = _resized(rgb, new_height, new_width, grows=size_px > bound)
    left = top = 0
    if method.endswith("resize"):
        rows, columns = (_nearest_multiple(side, patch) for side in (new_height, new_width))
        image = _resized(image, rows, columns, grows=rows > new_height or columns > new_width)
        new_height, new_width = rows, columns
    else:
        rows, columns = (side // patch * patch for side in (new_height, new_width))
        if not rows or not columns:
            raise UserError(
                f"a photo of {width} x {height} px becomes {new_width} x {new_height} px, on one side less than one "
                f"patch of {patch} px; give a larger --size, or crop the photo"
            )
        top, left = (new_height - rows) // 2, (new_width - columns) // 2
        image = image[top : top + rows, left : left + columns]
    transform = resize_transform(new_width / width, new_height / height)
    transform[:2, 2] -= (left, top)
    return Prepared(np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / 255, transform)


def cropped_to_smallest(views: Sequence[Prepared]) -> list[Prepared]:
    """The views with a centre crop to the smallest height and the smallest width among them."""
    height, width = min(view.height for view in views), min(view.width for view in views)
    cropped = []
    for view in views:
        top, left = (view.height - height) // 2, (view.width - width) // 2
        transform = view.network_from_image.copy()
        transform[:2, 2] -= (left, top)
        cropped.append(Prepared(view.image[:, top : top + height, left : left + width], transform))
    return cropped


def _nearest_multiple(side: int, patch: int) -> int:
    lower = side // patch * patch
    return max(patch, lower + patch if 2 * (side - lower) >= patch else lower)


def _resized(rgb: np.ndarray, height: int, width: int, grows: bool) -> np.ndarray:
    if rgb.shape[:2] == (height, width):
        return rgb
    cv2 = optional.require("cv2", "the preparation of Depth Anything 3")
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_CUBIC if grows else cv2.INTER_AREA)
