"""Photos to network inputs: resized once, cropped or padded, with the pixel transform that did it; and maps back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dune_cli.errors import UserError
from dune_cli.geometry.cameras import resize_transform


@dataclass(frozen=True)
class Prepared:
    """A network input: `image` (3, h, w) float32 RGB in [0, 1].

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
    """The published two-view preparation (docs/models/mast3r.md, "Inputs"; docs/conventions.md, "Sizes").

    `rgb` (H, W, 3) uint8. The long side is resized to `size_px` and the short side with it, rounded (Lanczos to shrink,
    bicubic otherwise). None keeps the photo's own size. Then a crop about (W // 2, H // 2) leaves whole patches. With
    `square_to_4_3` a square photo also loses a quarter of its height (rounded down to whole patches).
    UserError where less than one patch remains.
    """
    height, width = _checked_size(rgb)
    if patch < 1 or (size_px is not None and size_px < patch):
        raise UserError(f"a size of {size_px} px is less than one patch of {patch} px; give a larger --size")
    scale = 1.0 if size_px is None else size_px / max(width, height)
    new_width, new_height = _scaled_size(width, height, scale)
    left, top, crop_width, crop_height = _crop(new_width, new_height, patch, square_to_4_3)
    if crop_width == 0 or crop_height == 0:
        raise UserError(
            f"a photo of {width} x {height} px becomes {new_width} x {new_height} px, on one side less than one patch "
            f"of {patch} px; give a larger --size, or crop the photo"
        )
    resized = _resize(rgb, new_width, new_height)
    cropped = resized[top : top + crop_height, left : left + crop_width]
    return Prepared(_to_chw(cropped), _network_from_image(rgb, new_width, new_height, -left, -top))


def letterbox(rgb: np.ndarray, size_px: int) -> Prepared:
    """The whole photo in the middle of a black square of `size_px`: the input of the human heads
    (docs/models/multihmr.md).

    `rgb` (H, W, 3) uint8 of any shape. Bicubic; the aspect ratio is kept (the short side is rounded, and is at least
    one pixel). Where the borders cannot be equal the left or upper one is the smaller.
    """
    height, width = _checked_size(rgb)
    new_width, new_height = _scaled_size(width, height, size_px / max(width, height))
    left, top = (size_px - new_width) // 2, (size_px - new_height) // 2
    square = np.zeros((size_px, size_px, 3), np.uint8)
    square[top : top + new_height, left : left + new_width] = _resize(rgb, new_width, new_height, bicubic=True)
    return Prepared(_to_chw(square), _network_from_image(rgb, new_width, new_height, left, top))


def fit(rgb: np.ndarray, largest_px: int) -> Prepared:
    """`rgb` (H, W, 3) uint8 with its long side reduced to `largest_px` (Lanczos), untouched where it is not longer.

    Nothing is cropped or padded: for networks that take any sides.
    """
    height, width = _checked_size(rgb)
    new_width, new_height = _scaled_size(width, height, min(1.0, largest_px / max(width, height)))
    return Prepared(_to_chw(_resize(rgb, new_width, new_height)), _network_from_image(rgb, new_width, new_height, 0, 0))


def stretch(rgb: np.ndarray, width: int, height: int) -> Prepared:
    """`rgb` (H, W, 3) uint8 resized to `width` x `height` px, whatever its shape; filters as in `prepare`.

    Nothing is cropped or padded: for networks that take whole patches and see whole photos.
    """
    _checked_size(rgb)
    return Prepared(_to_chw(_resize(rgb, width, height)), _network_from_image(rgb, width, height, 0, 0))


def _checked_size(rgb: np.ndarray) -> tuple[int, int]:
    """Height and width of a photo. ValueError unless it is (H, W, 3) uint8."""
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"rgb must be (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")
    return rgb.shape[0], rgb.shape[1]


def _scaled_size(width: int, height: int, scale: float) -> tuple[int, int]:
    return max(1, round(width * scale)), max(1, round(height * scale))


def _crop(width: int, height: int, patch: int, square_to_4_3: bool) -> tuple[int, int, int, int]:
    """Left, top, width and height of the crop: half sizes floor(2c / p) * p / 2 about c = side // 2."""
    cx, cy = width // 2, height // 2
    crop_width, crop_height = 2 * cx // patch * patch, 2 * cy // patch * patch
    if square_to_4_3 and width == height:
        crop_height = 3 * crop_width // 4 // patch * patch
    return cx - crop_width // 2, cy - crop_height // 2, crop_width, crop_height


def _resize(rgb: np.ndarray, width: int, height: int, bicubic: bool = False) -> np.ndarray:
    """Lanczos to shrink, bicubic otherwise or where `bicubic`. A photo of that size is returned as it is."""
    if rgb.shape[:2] == (height, width):
        return rgb
    from PIL import Image

    shrinks = max(width, height) < max(rgb.shape[:2])
    method = Image.Resampling.LANCZOS if shrinks and not bicubic else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(rgb).resize((width, height), method))


def _to_chw(rgb: np.ndarray) -> np.ndarray:
    """(3, h, w) float32 in [0, 1] of (h, w, 3) uint8."""
    image = np.ascontiguousarray(rgb.transpose(2, 0, 1), np.float32)
    image /= 255
    return image


def _network_from_image(rgb: np.ndarray, width: int, height: int, shift_x: int, shift_y: int) -> np.ndarray:
    """(3, 3): a resize of `rgb` to `width` x `height` px, then a shift by whole pixels."""
    transform = resize_transform(width / rgb.shape[1], height / rgb.shape[0])
    transform[:2, 2] += (shift_x, shift_y)
    return transform


def to_photo(values: np.ndarray, network_from_image: np.ndarray, width: int, height: int) -> np.ndarray:
    """A network's map (h, w) at the photo's pixels: (height, width) float32, bilinear.

    `network_from_image` (3, 3) is a scale and a shift. The result is NaN where the photo was cropped away. Half a
    network pixel around the map takes the value of its border.
    """
    rows, row_weight, row_inside = _sampling(
        height, values.shape[0], network_from_image[1, 1], network_from_image[1, 2]
    )
    columns, weight, inside = _sampling(width, values.shape[1], network_from_image[0, 0], network_from_image[0, 2])
    values = values.astype(np.float32, copy=False)
    tall = _lerp(values[rows], values[rows + (row_weight > 0)], row_weight[:, None])
    out = _lerp(tall[:, columns], tall[:, columns + (weight > 0)], weight)
    out[~row_inside] = np.nan
    out[:, ~inside] = np.nan
    return out


def _sampling(length: int, cells: int, scale: float, shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Along one axis: the cell before each pixel, the weight of the next one, and whether the map covers the pixel."""
    position = scale * np.arange(length) + shift
    inside = (position >= -0.5 - 1e-9) & (position <= cells - 0.5 + 1e-9)
    position = position.clip(0, cells - 1)
    first = np.minimum(position.astype(np.int64), max(cells - 2, 0))
    return first, (position - first).astype(np.float32), inside


def _lerp(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return first + (second - first) * weight
