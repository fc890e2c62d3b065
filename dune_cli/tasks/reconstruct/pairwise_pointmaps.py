"""What a two-view model says of many pairs: every photo encoded once, every pair decoded in both orders, all of it kept
in the work folder, so that a run that was killed goes on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dune_cli import console, optional
from dune_cli.geometry.cameras import backproject, pixel_grid, transform_pixels
from dune_cli.geometry.depth_maps import depth_edges
from dune_cli.geometry.global_alignment import Alignment, PairPoints
from dune_cli.geometry.poses import transform_points
from dune_cli.io.cache import WorkFolder, key_of
from dune_cli.io.photos import PhotoFacts, read_photo
from dune_cli.io.preprocess import prepare
from dune_cli.sfm.scene import PointMap

if TYPE_CHECKING:
    from dune_cli.models.mast3r import TwoViewModel, ViewFeatures


TOKENS, MAPS = "two-view tokens", "two-view maps"
HELD_PHOTOS = 64  # whose tokens are in memory at once, about 3 MB each
ANCHORS = 12  # a side of each view's grid
TOKENS_LAYOUT = {"tokens": ("f", ("N", "D")), "grid": ("i", (2,))}
MAPS_LAYOUT = {
    "anchor_points": ("F", (2, ANCHORS**2, 3)),
    "anchor_confidence": ("F", (2, ANCHORS**2)),
    "depth": ("F", ("H", "W")),
    "confidence": ("F", ("H", "W")),
}


@dataclass(frozen=True)
class EncodedPhoto:
    """A photo after the encoder: its facts, `key` in the work folder, the network's view of it ((h, w, 3) uint8 and
    `network_from_image`), and `pooled` (E,), its tokens' mean, of unit length."""

    facts: PhotoFacts
    key: str
    colors: np.ndarray
    network_from_image: np.ndarray
    pooled: np.ndarray

    @property
    def anchor_pixels(self) -> np.ndarray:
        """(A, 2) int64 (x, y) on the network's grid: the middles of ANCHORS x ANCHORS cells."""
        height, width = self.colors.shape[:2]
        x, y = (((np.arange(ANCHORS) + 0.5) / ANCHORS * side).astype(np.int64) for side in (width, height))
        return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)

    @property
    def anchors(self) -> np.ndarray:
        """(A, 2) the same in pixels of the photo."""
        return transform_pixels(np.linalg.inv(self.network_from_image), self.anchor_pixels)


class PairDecoder:
    """A model, and what it has to say of pairs of photos."""

    def __init__(self, model: TwoViewModel, size_px: int, work: WorkFolder) -> None:
        self.model, self.size_px, self.work = model, size_px, work
        numbers = sorted({str(value.dtype) for value in model.parameters()})
        self.key = (model.source.name, model.source.sha256 or "", size_px, *numbers)
        self._held: OrderedDict[str, ViewFeatures] = OrderedDict()

    def encode(self, paths: Sequence[Path]) -> list[EncodedPhoto]:
        """Every photo once; those that the work folder knows not at all."""
        return [self._encode(path) for path in console.progress(paths, "encoding photos", len(paths), "photo")]

    def _encode(self, path: Path) -> EncodedPhoto:
        import torch

        photo = read_photo(path)
        ready = prepare(photo.rgb, self.size_px, self.model.patch, self.model.crop_square_to_4_3)
        key = key_of(photo.sha256, *self.key)
        kept = self.work.read(TOKENS, key, TOKENS_LAYOUT)
        if kept is None:
            where = next(self.model.parameters()).device
            with torch.inference_mode():
                found = self.model.encode(torch.from_numpy(ready.image)[None].to(where))
            kept = {"tokens": found.tokens[0].float().cpu().numpy(), "grid": np.array(found.grid, np.int64)}
            self.work.write(TOKENS, key, kept)
        pooled = kept["tokens"].mean(0)
        return EncodedPhoto(
            photo.facts,
            key,
            np.rint(255 * ready.image.transpose(1, 2, 0)).astype(np.uint8),
            ready.network_from_image,
            pooled / max(float(np.linalg.norm(pooled)), 1e-12),
        )

    def decode(
        self, photos: Sequence[EncodedPhoto], pairs: Sequence[tuple[int, int]], min_confidence: float
    ) -> PairPoints:
        """The anchors of every pair in both orders: (i, j), then (j, i). Dense maps stay in the work folder."""
        both = [order for i, j in pairs for order in ((i, j), (j, i))]
        points = np.empty((len(both), 2, ANCHORS**2, 3))
        confidence = np.empty((len(both), 2, ANCHORS**2))
        for row, (i, j) in enumerate(console.progress(both, "decoding pairs", len(both), "pair")):
            kept = self._pair(photos[i], photos[j])
            points[row], confidence[row] = kept["anchor_points"], kept["anchor_confidence"]
        usable = np.isfinite(points).all(-1) & (confidence >= min_confidence)
        return PairPoints(
            pairs=np.array(both, np.int64),
            points=np.where(usable[..., None], points, 1.0),
            confidence=np.where(usable, confidence, 0.0),
            anchors=np.stack([photo.anchors for photo in photos]),
            sizes=np.array([(photo.facts.width, photo.facts.height) for photo in photos]),
        )

    def own_map(self, first: EncodedPhoto, second: EncodedPhoto) -> tuple[np.ndarray, np.ndarray]:
        """The first photo's depth z (h, w) in its own camera, up to a scale, and confidence (h, w), float32."""
        kept = self._pair(first, second)
        return kept["depth"].astype(np.float32), kept["confidence"].astype(np.float32)

    def _pair(self, first: EncodedPhoto, second: EncodedPhoto) -> dict[str, np.ndarray]:
        import torch

        key = key_of(first.key, second.key)
        kept = self.work.read(MAPS, key, MAPS_LAYOUT)
        if kept is not None:
            return kept
        with torch.inference_mode():
            out = self.model.decode(self._features(first), self._features(second), descriptors=False)
        assert out.points1 is not None and out.points2 is not None
        assert out.confidence1 is not None and out.confidence2 is not None
        maps = [t[0].float().cpu().numpy() for t in (out.points1, out.points2)]
        sure = [t[0].float().cpu().numpy() for t in (out.confidence1, out.confidence2)]
        places = [photo.anchor_pixels[:, ::-1].T for photo in (first, second)]
        depth = maps[0][..., 2]
        middle = float(np.median(np.abs(depth))) or 1.0
        kept = {
            "anchor_points": np.stack([one[tuple(at)] for one, at in zip(maps, places)]),
            "anchor_confidence": np.stack([one[tuple(at)] for one, at in zip(sure, places)]),
            "depth": np.clip(depth / middle, -6e4, 6e4).astype(np.float16),
            "confidence": np.clip(sure[0], 0, 6e4).astype(np.float16),
        }
        self.work.write(MAPS, key, kept)
        return kept

    def _features(self, photo: EncodedPhoto) -> ViewFeatures:
        import torch

        from dune_cli.models.mast3r import ViewFeatures

        if photo.key not in self._held:
            kept = self.work.read(TOKENS, photo.key, TOKENS_LAYOUT)
            if kept is None:
                self._encode(photo.facts.path)
                kept = self.work.read(TOKENS, photo.key, TOKENS_LAYOUT)
            assert kept is not None, "it was written just now"
            rows, columns = kept["grid"].tolist()
            where = next(self.model.parameters()).device
            tokens = torch.from_numpy(kept["tokens"])[None].to(where)
            self._held[photo.key] = ViewFeatures(tokens, (rows, columns))
            while len(self._held) > HELD_PHOTOS:
                self._held.popitem(last=False)
        self._held.move_to_end(photo.key)
        return self._held[photo.key]


# A view's own point maps out of all its pairs as one dense map, laid through the aligned depths of its anchors.


CORRECTION = 0.1  # logarithm of depth: what anchors correct a map by; more is an anchor that went astray


def fuse_pointmaps(
    maker: PairDecoder,
    photos: Sequence[EncodedPhoto],
    data: PairPoints,
    found: Alignment,
    view: int,
    min_confidence: float,
) -> PointMap | None:
    """The mean of the view's depth maps by confidence, without those of pairs that agree less than half as well as the
    best, bent smoothly to the anchors' depths. None for a view without a pose."""
    if not found.registered[view]:
        return None
    rows = np.flatnonzero((data.pairs[:, 0] == view) & found.registered[data.pairs[:, 1]])
    agree = rows[found.pair_inliers[rows] >= 0.5 * found.pair_inliers[rows].max()]
    photo = photos[view]
    x, y = photo.anchor_pixels.T
    log_sum, weight_sum, sure_sum = (np.zeros(photo.colors.shape[:2]) for _ in range(3))
    for row in agree:
        depth, confidence = maker.own_map(photo, photos[data.pairs[row, 1]])
        good = (depth > 0) & np.isfinite(depth)
        gap = np.log(found.depth[view]) - np.log(np.where(good, depth, np.nan)[y, x])
        gap[data.confidence[row, 0] <= 0] = np.nan
        if not np.isfinite(gap).any():
            continue
        middle = float(np.nanmedian(gap))
        weight = np.where(good, confidence, 0.0)
        log_sum += weight * (np.log(np.where(good, depth, 1.0)) + middle)
        weight_sum += weight
        sure_sum += weight * confidence
    have = weight_sum > 0
    log_depth = log_sum / np.where(have, weight_sum, 1.0)
    log_depth += _correction(np.log(found.depth[view]) - np.where(have, log_depth, np.nan)[y, x], have.shape)
    confidence = sure_sum / np.where(have, weight_sum, 1.0)
    depth = np.where(have, np.exp(log_depth), np.nan)
    valid = have & (confidence >= min_confidence)
    valid &= ~depth_edges(np.where(valid, depth, 1.0), valid)
    image_from_map = np.linalg.inv(photo.network_from_image)
    pixels = transform_pixels(image_from_map, pixel_grid(*depth.shape))
    points = transform_points(found.world_from_cam[view], backproject(pixels, depth, found.K[view]))
    return PointMap(points, confidence, valid, photo.colors, image_from_map)


def _correction(gaps: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(h, w) smooth: the anchors' gaps (A,) in log depth, without those that stand out, spread over the map."""
    cv2 = optional.require("cv2", "dense point maps")
    grid = gaps.reshape(ANCHORS, ANCHORS)
    near = np.isfinite(grid) & (np.abs(grid - np.nanmedian(grid)) < CORRECTION) if np.isfinite(grid).any() else None
    if near is None or not near.any():
        return np.zeros(shape)
    filled, weight = np.where(near, grid, 0.0), near.astype(np.float64) + 1e-9
    smooth = cv2.GaussianBlur(filled, (0, 0), 1.5) / cv2.GaussianBlur(weight, (0, 0), 1.5)
    return cv2.resize(smooth, shape[::-1], interpolation=cv2.INTER_LINEAR)
