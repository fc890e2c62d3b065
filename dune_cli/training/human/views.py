"""Square views of a labelled photo: the whole one, letterboxed, and fixed random crops about people."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from dune_cli.training.heads.views import GAIN, GAMMA
from dune_cli.training.human.people import LabelledPeople

PERSON_SHARE = (0.35, 1.8)  # of a crop's side that the person it is about takes
FREE_SHARE = (0.4, 1.0)  # of the photo's shorter side that a crop takes where nobody is


def draw_view(
    rgb: np.ndarray, people: LabelledPeople, name: str, number: int, size_px: int, seed: int
) -> tuple[np.ndarray, LabelledPeople]:
    """View `number` of a photo (H, W, 3) uint8 with its people: a square (S, S, 3) uint8, and the people in it.

    0 is the whole photo in the middle of a black square. Others are crops, flipped by chance, in changed colours. A
    view is a function of seed, name and number alone.
    """
    height, width = rgb.shape[:2]
    if number == 0:
        scale = size_px / max(height, width)
        shift = np.array([size_px - scale * width, size_px - scale * height]) / 2
        picture, transform = _square(rgb, scale, shift, size_px)
        return picture, people.moved(transform, size_px)
    key = int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big")
    rng = np.random.default_rng([seed, key, number])
    if len(people):
        chosen = int(rng.integers(len(people)))
        box = people.boxes[chosen]
        extent = max(float((box[2:] - box[:2]).max()), 16.0)
        side = extent / math.exp(rng.uniform(*np.log(PERSON_SHARE)))
        if extent < side:  # all of the person, anywhere in the crop
            centre = (box[:2] + box[2:]) / 2 + rng.uniform(-0.5, 0.5, 2) * (side - extent)
        else:  # a part with the head
            centre = people.head_px()[chosen] + rng.uniform(-0.4, 0.4, 2) * side
    else:
        side = min(height, width) * rng.uniform(*FREE_SHARE)
        centre = np.array([rng.uniform(side / 2, width - side / 2), rng.uniform(side / 2, height - side / 2)])
    scale = min(size_px / side, 4.0)
    picture, transform = _square(rgb, scale, size_px / 2 - scale * centre, size_px)
    seen = people.moved(transform, size_px)
    if rng.random() < 0.5:
        picture, seen = picture[:, ::-1], seen.flipped(size_px)
    gamma, gains = math.exp(rng.uniform(*np.log(GAMMA))), np.exp(rng.uniform(-GAIN, GAIN, 3)).astype(np.float32)
    if rng.random() < 0.1:
        picture = np.repeat(picture.mean(-1, keepdims=True), 3, -1)
    changed = (picture / np.float32(255)) ** np.float32(gamma) * gains
    return np.rint(changed.clip(0, 1) * 255).astype(np.uint8), seen


def _square(rgb: np.ndarray, scale: float, shift: np.ndarray, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """The photo times `scale` plus `shift` (2,), pixels from the corner, in a square that is black outside it; and the
    (3, 3) that takes its pixels to the square's, after rounding to whole pixels of the square."""
    from PIL import Image

    height, width = rgb.shape[:2]
    low = np.rint(np.maximum(shift, 0)).astype(int)
    high = np.rint(np.minimum(shift + scale * np.array([width, height]), size_px)).astype(int)
    high = np.maximum(high, low + 1)
    transform = np.array([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1.0]])
    square = np.zeros((size_px, size_px, 3), np.uint8)
    first, last = (low - shift) / scale, (high - shift) / scale
    box = (*np.clip(first, 0, [width, height]), *np.clip(last, 0, [width, height]))
    if box[2] > box[0] and box[3] > box[1] and (low < size_px).all() and (high > 0).all():
        part = Image.fromarray(rgb).resize(tuple(high - low), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        square[low[1] : high[1], low[0] : high[0]] = np.asarray(part)
    return square, transform
