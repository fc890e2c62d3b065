"""A photo as a network wants it: resized once, cropped to whole patches, with the pixel transform that did it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dune_cli.errors import UserError


@dataclass(frozen=True)
class Prepared:
    """A network input: `image` (3, h, w) float32 RGB in [0, 1], both sides multiples of the patch.

    `network_from_image` (3, 3) float64 maps homogeneous pixels of the photo to pixels of `image` (pixel centres at
    integers in both), so that K_network = network_from_image @ K.
    """

    image: np.ndarray
    network_from_image: np.ndarray

    @property
    def width(self) -> int:
        return self.image.shape[2]

    @property
    def height(self) -> int:
        return self.image.shape[1]


def prepare(rgb: np.ndarray, size_px: int | None, patch: int, square_to_4_3: bool = False) -> Prepared:
    """The published two-view preparation (spec 3, "Inputs"; schemas, "Sizes").

    `rgb` (H, W, 3) uint8. The long side is resized to `size_px`, the other one with it and rounded (Lanczos to shrink,
    bicubic otherwise); None keeps the photo's own size. Then a crop about (W // 2, H // 2) to whole patches; with
    `square_to_4_3` a square photo loses a quarter of its height too (rounded down to whole patches).
    UserError where less than one patch remains.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"rgb must be (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")
    if patch < 1 or (size_px is not None and size_px < patch):
        raise UserError(f"a size of {size_px} px is less than one patch of {patch} px; give a larger --size")
    height, width = rgb.shape[:2]
    new_width, new_height = _resized(width, height, size_px)
    left, top, crop_width, crop_height = _crop(new_width, new_height, patch, square_to_4_3)
    if crop_width == 0 or crop_height == 0:
        raise UserError(
            f"a photo of {width} x {height} px becomes {new_width} x {new_height} px, on one side less than one patch "
            f"of {patch} px; give a larger --size, or crop the photo"
        )
    resized = _resize(rgb, new_width, new_height)
    cropped = resized[top : top + crop_height, left : left + crop_width].transpose(2, 0, 1)
    image = np.ascontiguousarray(cropped, np.float32)
    image /= 255
    return Prepared(image, _transform(new_width / width, new_height / height, left, top))


def _resized(width: int, height: int, size_px: int | None) -> tuple[int, int]:
    if size_px is None:
        return width, height
    scale = size_px / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _crop(width: int, height: int, patch: int, square_to_4_3: bool) -> tuple[int, int, int, int]:
    """Left, top, width and height of the crop: half sizes floor(2c / p) * p / 2 about c = side // 2."""
    cx, cy = width // 2, height // 2
    crop_width, crop_height = 2 * cx // patch * patch, 2 * cy // patch * patch
    if square_to_4_3 and width == height:
        crop_height = 3 * crop_width // 4 // patch * patch
    return cx - crop_width // 2, cy - crop_height // 2, crop_width, crop_height


def _resize(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """Untouched where the size is right already."""
    if rgb.shape[:2] == (height, width):
        return rgb
    from PIL import Image

    shrinks = max(width, height) < max(rgb.shape[:2])
    method = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(rgb).resize((width, height), method))


def _transform(scale_x: float, scale_y: float, left: int, top: int) -> np.ndarray:
    """x' = (x + 0.5) * scale - 0.5 - left, and y likewise."""
    return np.array(
        [[scale_x, 0, 0.5 * scale_x - 0.5 - left], [0, scale_y, 0.5 * scale_y - 0.5 - top], [0, 0, 1]], np.float64
    )


# A photo in the middle of a black square, and the pixel transform back: what the human heads look at (spec 4).


def letterbox(rgb: np.ndarray, size_px: int) -> Prepared:
    """`rgb` (H, W, 3) uint8 of any shape -> a square of `size_px` with the whole photo in its middle.

    Bicubic, aspect kept (the short side is rounded, and is at least one pixel), black borders; where the borders
    cannot be equal the left or upper one is the smaller. `network_from_image` maps pixels with centres at integers.
    """
    from PIL import Image

    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"rgb must be (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")
    height, width = rgb.shape[:2]
    scale = size_px / max(width, height)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    resized = np.asarray(Image.fromarray(rgb).resize((new_width, new_height), Image.Resampling.BICUBIC))
    left, top = (size_px - new_width) // 2, (size_px - new_height) // 2
    square = np.zeros((size_px, size_px, 3), np.uint8)
    square[top : top + new_height, left : left + new_width] = resized
    image = square.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    return Prepared(image, _transform_letterbox(new_width / width, new_height / height, left, top))


def _transform_letterbox(scale_x: float, scale_y: float, left: int, top: int) -> np.ndarray:
    """x' = (x + 0.5) · scale - 0.5 + left, and y likewise."""
    return np.array(
        [[scale_x, 0, 0.5 * scale_x - 0.5 + left], [0, scale_y, 0.5 * scale_y - 0.5 + top], [0, 0, 1]], np.float64
    )


# Whole photos to a network and its maps back to the photo's pixels.


def fit(rgb: np.ndarray, largest_px: int) -> Prepared:
    """`rgb` (H, W, 3) uint8 with its long side reduced to `largest_px` (Lanczos), untouched where it is not longer.

    Nothing is cropped and nothing padded: for networks that take any sides.
    """
    from PIL import Image

    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"rgb must be (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")
    height, width = rgb.shape[:2]
    scale = min(1.0, largest_px / max(width, height))
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    if scale < 1:
        rgb = np.asarray(Image.fromarray(rgb).resize((new_width, new_height), Image.Resampling.LANCZOS))
    scale_x, scale_y = new_width / width, new_height / height
    network_from_image = np.array(
        [[scale_x, 0, 0.5 * scale_x - 0.5], [0, scale_y, 0.5 * scale_y - 0.5], [0, 0, 1]], np.float64
    )
    return Prepared(rgb.transpose(2, 0, 1).astype(np.float32) / np.float32(255), network_from_image)


def to_photo(values: np.ndarray, network_from_image: np.ndarray, width: int, height: int) -> np.ndarray:
    """A network's map (h, w) at the photo's pixels, (height, width) float32, bilinear.

    `network_from_image` (3, 3) scales and shifts, no more. NaN where the photo was cropped away; half a network pixel
    around the map takes its border's values.
    """
    rows, row_weight, row_seen = _along(height, values.shape[0], network_from_image[1, 1], network_from_image[1, 2])
    columns, weight, seen = _along(width, values.shape[1], network_from_image[0, 0], network_from_image[0, 2])
    values = values.astype(np.float32, copy=False)
    tall = _lerp(values[rows], values[rows + (row_weight > 0)], row_weight[:, None])
    out = _lerp(tall[:, columns], tall[:, columns + (weight > 0)], weight)
    out[~row_seen] = np.nan
    out[:, ~seen] = np.nan
    return out


def _along(length: int, cells: int, scale: float, shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Along one axis: the cell before each pixel, the weight of the next one, and whether the map reaches it."""
    position = scale * np.arange(length) + shift
    seen = (position >= -0.5 - 1e-9) & (position <= cells - 0.5 + 1e-9)
    position = position.clip(0, cells - 1)
    first = np.minimum(position.astype(np.int64), max(cells - 2, 0))
    return first, (position - first).astype(np.float32), seen


def _lerp(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return first + (second - first) * weight
