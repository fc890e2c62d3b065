"""Where photos show sky, which has no depth: there, stereo carries on the outlines of what stands before it, as
halos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dune_cli import console, optional
from dune_cli.provenance import Source

SAMPLE, SURE, MIN_SHARE = 5, 0.9, 0.02  # photos looked at first; how sure, of which share of more than half of them
GUIDE_PX, GUIDE_RADIUS_PX = 320, 8  # long side of the photo at which edges are looked for, and how far
GUIDE_NOISE = 5e-4  # variance of colours in [0, 1] below which nothing counts as an edge
MARGIN_PX = 2  # around the sky, of which outlines have a share


@dataclass(frozen=True)
class SkyNetwork:
    """`probability` of a photo (H, W, 3) uint8: (h, w) float32, how likely its places show sky, on a coarser grid.
    `sources`: its weights, with their licences."""

    probability: Callable[[np.ndarray], np.ndarray]
    sources: tuple[Source, ...]


def find_sky(rgbs: Sequence[np.ndarray | None], network: SkyNetwork) -> list[np.ndarray | None]:
    """Of each photo (H, W, 3) uint8 its pixels of sky, (H, W) bool; None where `rgbs` has none.

    All are None unless sky is plain: more than half of five photos, evenly spread, have it in a fiftieth of their
    pixels or more. So photos of rooms cost five passes of the network at most.
    """
    shown = [i for i, rgb in enumerate(rgbs) if rgb is not None]
    sample = [shown[k] for k in np.unique(np.linspace(0, len(shown) - 1, SAMPLE).round().astype(int))] if shown else []
    seen = {i: network.probability(rgbs[i]) for i in sample}
    if 2 * sum((one > SURE).mean() >= MIN_SHARE for one in seen.values()) <= len(sample):
        return [None] * len(rgbs)
    found: list[np.ndarray | None] = []
    for i, rgb in enumerate(console.progress(rgbs, "sky", len(rgbs), "photo")):
        found.append(None if rgb is None else sky_pixels(rgb, seen[i] if i in seen else network.probability(rgb)))
    return found


def sky_pixels(rgb: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """(H, W) bool, the pixels of a photo (H, W, 3) uint8 that show sky, and a margin of two, by a coarse `probability`
    (h, w) whose edges go to those of the photo (K. He and J. Sun, "Fast guided filter", 2015). Regions without a sure
    place are left out."""
    cv2 = optional.require("cv2", "multi-view stereo")

    height, width = rgb.shape[:2]
    scale = min(1.0, GUIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    guide = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    wanted = cv2.resize(probability.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    slope, shift = _local_lines(guide, wanted)
    slope, shift = (cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR) for one in (slope, shift))
    likely = (slope * rgb).sum(-1) / 255 + shift > 0.5
    _, labels = cv2.connectedComponents(likely.astype(np.uint8))
    sure = cv2.resize(probability.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > SURE
    held = np.zeros(labels.max() + 1, bool)
    held[labels[sure & likely]] = True
    held[0] = False
    return cv2.dilate(held[labels].astype(np.uint8), np.ones((2 * MARGIN_PX + 1,) * 2, np.uint8)) > 0


def _local_lines(guide: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The guided filter's means of `slope` (h, w, 3) and `shift` (h, w): `wanted` (h, w) as lines in the colours of
    the `guide` (h, w, 3), fitted in the window around each pixel."""
    cv2 = optional.require("cv2", "multi-view stereo")

    def mean(image: np.ndarray) -> np.ndarray:
        return cv2.blur(image, (2 * GUIDE_RADIUS_PX + 1,) * 2, borderType=cv2.BORDER_REFLECT)

    colors, target = mean(guide), mean(wanted)
    both = mean(guide * wanted[..., None]) - colors * target[..., None]
    pairs = [(i, j) for i in range(3) for j in range(i, 3)]
    products = (
        mean(np.stack([guide[..., i] * guide[..., j] for i, j in pairs[:4]], -1)),
        mean(np.stack([guide[..., i] * guide[..., j] for i, j in pairs[4:]], -1)),
    )
    covariance = np.empty((*wanted.shape, 3, 3), np.float32)
    for (i, j), product in zip(pairs, np.moveaxis(np.concatenate(products, -1), -1, 0)):
        covariance[..., i, j] = covariance[..., j, i] = product - colors[..., i] * colors[..., j]
    covariance += GUIDE_NOISE * np.eye(3, dtype=np.float32)
    slope = np.linalg.solve(covariance, both[..., None])[..., 0]
    return mean(slope), mean(target - (slope * colors).sum(-1))
