"""Views of a labelled photo: the whole photo and fixed random crops, each resized to a whole patch grid with its label.

A view is a function of the seed, the example's name and its number alone, so that a cache and a resumed run agree.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from dune_cli.models.heads import input_size

ASPECTS = (9 / 16, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 16 / 9)  # width / height; few, so that photos share batches
CROP_AREA = (0.25, 1.0)  # share of the photo
CROP_STRETCH = 1.15  # of a crop's aspect, either way
GAMMA, GAIN = (0.75, 1.35), 0.1  # photometric changes: an exponent, and a factor a channel


@dataclass(frozen=True)
class PhotoView:
    """A part of a photo as a network input.

    box: left, top, right, bottom as shares of the photo's width and height. size: (height, width) of the input in
    pixels, multiples of the patch. flipped: left and right are swapped. gamma, gains: photometric changes.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    flipped: bool = False
    gamma: float = 1.0
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def focal_px(self, photo_focal_px: float, width: int, height: int) -> float:
        """The focal length in pixels of the input, geometric mean of both axes, for a photo of this size."""
        left, top, right, bottom = self.box
        scale_x = self.size[1] / ((right - left) * width)
        scale_y = self.size[0] / ((bottom - top) * height)
        return photo_focal_px * math.sqrt(scale_x * scale_y)


def grid_aspect(width: int, height: int) -> float:
    """The aspect out of ASPECTS that is nearest to a photo's."""
    return min(ASPECTS, key=lambda aspect: abs(math.log(aspect * height / width)))


def view_size(width: int, height: int, patch: int, size_px: int) -> tuple[int, int]:
    """(height, width) of the inputs that a photo of this size gives."""
    aspect = grid_aspect(width, height)
    return input_size(round(1000 / aspect), 1000, patch, size_px)


def draw_view(
    name: str, number: int, width: int, height: int, patch: int, size_px: int, seed: int, photometric: bool = True
) -> PhotoView:
    """PhotoView `number` of the photo `name` (width x height px): 0 is the whole photo, the others are random crops."""
    size = view_size(width, height, patch, size_px)
    if number == 0:
        return PhotoView((0.0, 0.0, 1.0, 1.0), size)
    key = int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big")
    rng = np.random.default_rng([seed, key, number])
    area = rng.uniform(*CROP_AREA)
    stretch = math.exp(rng.uniform(-1, 1) * math.log(CROP_STRETCH))
    aspect = size[1] / size[0] * stretch * height / width  # of the box in shares of the photo's sides
    w, h = min(1.0, math.sqrt(area * aspect)), min(1.0, math.sqrt(area / aspect))
    left, top = rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)
    flipped, gamma = bool(rng.random() < 0.5), math.exp(rng.uniform(*np.log(GAMMA)))
    gains = tuple(np.exp(rng.uniform(-GAIN, GAIN, 3)).tolist())
    if not photometric:
        gamma, gains = 1.0, (1.0, 1.0, 1.0)
    return PhotoView((left, top, left + w, top + h), size, flipped, gamma, gains)


def view_image(rgb: np.ndarray, view: PhotoView) -> torch.Tensor:
    """rgb (H, W, 3) uint8 -> the view's picture (3, h, w) uint8, bilinear and antialiased."""
    from PIL import Image

    height, width = rgb.shape[:2]
    left, top, right, bottom = view.box
    box = left * width, top * height, right * width, bottom * height
    resized = Image.fromarray(rgb).resize(view.size[::-1], Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    picture = np.asarray(resized)
    if view.gamma != 1 or view.gains != (1.0, 1.0, 1.0):
        changed = (picture / np.float32(255)) ** np.float32(view.gamma) * np.array(view.gains, np.float32)
        picture = np.rint(changed.clip(0, 1) * 255).astype(np.uint8)
    if view.flipped:
        picture = picture[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))


def nearest_label(label: np.ndarray, view: PhotoView, size: tuple[int, int]) -> np.ndarray:
    """A label map (H, W) of the whole photo -> (h, w) of the view: the value at each cell's centre."""
    left, top, right, bottom = view.box
    rows = ((top + (np.arange(size[0]) + 0.5) / size[0] * (bottom - top)) * label.shape[0]).astype(np.int64)
    columns = ((left + (np.arange(size[1]) + 0.5) / size[1] * (right - left)) * label.shape[1]).astype(np.int64)
    values = label[rows.clip(0, label.shape[0] - 1)[:, None], columns.clip(0, label.shape[1] - 1)]
    return np.ascontiguousarray(values[:, ::-1] if view.flipped else values)


def smooth_label(label: torch.Tensor, view: PhotoView, size: tuple[int, int]) -> torch.Tensor:
    """Maps (C, H, W) of the whole photo, such as class logits -> (C, h, w) of the view, bilinear."""
    left, top, right, bottom = view.box
    y = (top + (torch.arange(size[0]) + 0.5) / size[0] * (bottom - top)) * 2 - 1
    x = (left + (torch.arange(size[1]) + 0.5) / size[1] * (right - left)) * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]
    values = F.grid_sample(label[None].float(), grid.float(), padding_mode="border", align_corners=False)[0]
    return values.flip(-1) if view.flipped else values
