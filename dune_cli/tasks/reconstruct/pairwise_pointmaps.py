"""Point maps of many pairs by a two-view model: each photo is encoded once, each pair decoded in both orders, and a
view's maps are fused into one. Tokens and maps are cached, so that an interrupted run continues."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dune_cli import console, optional
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import backproject, pixel_grid, transform_pixels
from dune_cli.geometry.depth_maps import depth_edges
from dune_cli.geometry.global_alignment import Alignment, PairPoints
from dune_cli.geometry.poses import transform_points
from dune_cli.io.cache import WorkFolder, key_of
from dune_cli.io.photos import PhotoInfo, read_photo
from dune_cli.io.preprocess import Prepared, prepare
from dune_cli.io.undistortion import prepared_photo, shown_in_photo
from dune_cli.sfm.scene import PointMap

if TYPE_CHECKING:
    from dune_cli.models.mast3r import TwoViewModel, ViewFeatures


TOKENS, MAPS = "two-view tokens", "two-view maps"
TOKENS_IN_MEMORY = 64  # photos, about 3 MB each
ANCHORS = 12  # a side of each view's grid of anchors
MAX_CORRECTION = 0.1  # of the logarithm of a depth: an anchor that is further off is an outlier
TOKENS_LAYOUT = {"tokens": ("f", ("N", "D")), "grid": ("i", (2,))}
MAPS_LAYOUT = {
    "anchor_points": ("F", (2, ANCHORS**2, 3)),
    "anchor_confidence": ("F", (2, ANCHORS**2)),
    "depth": ("F", ("H", "W")),
    "confidence": ("F", ("H", "W")),
}


@dataclass(frozen=True)
class EncodedPhoto:
    """A photo after the encoder: its metadata, its `key` in the cache, the network's input as `colors` (h, w, 3) uint8
    with `network_from_image` (3, 3), and `descriptor` (E,), the mean of its tokens with unit length. `lens`: its
    camera, where it has distortion; pixels are then those of the undistorted photo, the pinhole camera `lens.K`."""

    info: PhotoInfo
    key: str
    colors: np.ndarray
    network_from_image: np.ndarray
    descriptor: np.ndarray
    lens: Camera | None = None

    @property
    def anchor_pixels(self) -> np.ndarray:
        """(A, 2) int64 (x, y) in pixels of the network's input: the middles of ANCHORS x ANCHORS cells."""
        height, width = self.colors.shape[:2]
        x, y = (((np.arange(ANCHORS) + 0.5) / ANCHORS * side).astype(np.int64) for side in (width, height))
        return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)

    @property
    def anchors(self) -> np.ndarray:
        """(A, 2) the same in pixels of the photo."""
        return transform_pixels(np.linalg.inv(self.network_from_image), self.anchor_pixels)

    def in_photo(self, pixels: np.ndarray) -> np.ndarray:
        """(..., 2) where the photo's file has `pixels` (..., 2); NaN for none."""
        return pixels if self.lens is None else self.lens.distort(pixels)

    def shows(self, pixels: np.ndarray) -> np.ndarray:
        """(...) bool: whether the photo shows `pixels` (..., 2); what a lens does not fill is not shown."""
        return np.ones(pixels.shape[:-1], bool) if self.lens is None else shown_in_photo(self.lens, pixels)


class PairDecoder:
    """A two-view model with the cache of what it has computed."""

    def __init__(self, model: TwoViewModel, size_px: int, cache: WorkFolder) -> None:
        self.model, self.size_px, self.cache = model, size_px, cache
        dtypes = sorted({str(value.dtype) for value in model.parameters()})
        self.key = (model.source.name, model.source.sha256 or "", size_px, *dtypes)
        self._tokens: OrderedDict[str, ViewFeatures] = OrderedDict()

    def encode(self, paths: Sequence[Path], lenses: Sequence[Camera | None]) -> list[EncodedPhoto]:
        """Every photo, encoded unless its tokens are cached. `lenses`: None for a pinhole camera."""
        numbers = console.progress(range(len(paths)), "encoding photos", len(paths), "photo")
        return [self._encode(paths[number], lenses[number]) for number in numbers]

    def _prepare(self, rgb: np.ndarray) -> Prepared:
        return prepare(rgb, self.size_px, self.model.patch, self.model.crop_square_to_4_3)

    def _encode(self, path: Path, lens: Camera | None) -> EncodedPhoto:
        import torch

        photo = read_photo(path)
        prepared = self._prepare(photo.rgb) if lens is None else prepared_photo(photo.rgb, lens, self._prepare)
        key = key_of(photo.sha256, *self.key, *(() if lens is None else (repr(lens),)))
        arrays = self.cache.read(TOKENS, key, TOKENS_LAYOUT)
        if arrays is None:
            device = next(self.model.parameters()).device
            with torch.inference_mode():
                features = self.model.encode(torch.from_numpy(prepared.image)[None].to(device))
            arrays = {"tokens": features.tokens[0].float().cpu().numpy(), "grid": np.array(features.grid, np.int64)}
            self.cache.write(TOKENS, key, arrays)
        mean = arrays["tokens"].mean(0)
        return EncodedPhoto(
            photo.info,
            key,
            np.rint(255 * prepared.image.transpose(1, 2, 0)).astype(np.uint8),
            prepared.network_from_image,
            mean / max(float(np.linalg.norm(mean)), 1e-12),
            lens,
        )

    def decode(
        self, photos: Sequence[EncodedPhoto], pairs: Sequence[tuple[int, int]], min_confidence: float
    ) -> PairPoints:
        """The anchors of every pair in both orders: (i, j), then (j, i). Dense maps stay in the cache."""
        ordered_pairs = [order for i, j in pairs for order in ((i, j), (j, i))]
        points = np.empty((len(ordered_pairs), 2, ANCHORS**2, 3))
        confidence = np.empty((len(ordered_pairs), 2, ANCHORS**2))
        for row, (i, j) in enumerate(console.progress(ordered_pairs, "decoding pairs", len(ordered_pairs), "pair")):
            arrays = self._decode(photos[i], photos[j])
            points[row], confidence[row] = arrays["anchor_points"], arrays["anchor_confidence"]
        shown = np.stack([photo.shows(photo.anchors) for photo in photos])[np.array(ordered_pairs, np.int64)]
        usable = np.isfinite(points).all(-1) & (confidence >= min_confidence) & shown
        return PairPoints(
            pairs=np.array(ordered_pairs, np.int64),
            points=np.where(usable[..., None], points, 1.0),
            confidence=np.where(usable, confidence, 0.0),
            anchors=np.stack([photo.anchors for photo in photos]),
            sizes=np.array([(photo.info.width, photo.info.height) for photo in photos]),
        )

    def depth_map(self, first: EncodedPhoto, second: EncodedPhoto) -> tuple[np.ndarray, np.ndarray]:
        """The first photo's depth z (h, w) in its own camera, up to a scale, and confidence (h, w), float32."""
        arrays = self._decode(first, second)
        return arrays["depth"].astype(np.float32), arrays["confidence"].astype(np.float32)

    def _decode(self, first: EncodedPhoto, second: EncodedPhoto) -> dict[str, np.ndarray]:
        import torch

        key = key_of(first.key, second.key)
        arrays = self.cache.read(MAPS, key, MAPS_LAYOUT)
        if arrays is not None:
            return arrays
        with torch.inference_mode():
            out = self.model.decode(self._features(first), self._features(second), descriptors=False)
        assert out.points1 is not None and out.points2 is not None
        assert out.confidence1 is not None and out.confidence2 is not None
        points = [t[0].float().cpu().numpy() for t in (out.points1, out.points2)]
        confidence = [t[0].float().cpu().numpy() for t in (out.confidence1, out.confidence2)]
        anchors = [tuple(photo.anchor_pixels[:, ::-1].T) for photo in (first, second)]
        depth = points[0][..., 2]
        median = float(np.median(np.abs(depth))) or 1.0
        arrays = {
            "anchor_points": np.stack([one[at] for one, at in zip(points, anchors)]),
            "anchor_confidence": np.stack([one[at] for one, at in zip(confidence, anchors)]),
            "depth": np.clip(depth / median, -6e4, 6e4).astype(np.float16),
            "confidence": np.clip(confidence[0], 0, 6e4).astype(np.float16),
        }
        self.cache.write(MAPS, key, arrays)
        return arrays

    def _features(self, photo: EncodedPhoto) -> ViewFeatures:
        import torch

        from dune_cli.models.mast3r import ViewFeatures

        if photo.key not in self._tokens:
            arrays = self.cache.read(TOKENS, photo.key, TOKENS_LAYOUT)
            if arrays is None:
                self._encode(photo.info.path, photo.lens)
                arrays = self.cache.read(TOKENS, photo.key, TOKENS_LAYOUT)
            assert arrays is not None, "it was written just now"
            rows, columns = arrays["grid"].tolist()
            device = next(self.model.parameters()).device
            self._tokens[photo.key] = ViewFeatures(torch.from_numpy(arrays["tokens"])[None].to(device), (rows, columns))
            while len(self._tokens) > TOKENS_IN_MEMORY:
                self._tokens.popitem(last=False)
        self._tokens.move_to_end(photo.key)
        return self._tokens[photo.key]


def fuse_pointmaps(
    decoder: PairDecoder,
    photos: Sequence[EncodedPhoto],
    data: PairPoints,
    alignment: Alignment,
    view: int,
    min_confidence: float,
) -> PointMap | None:
    """The mean of a view's depth maps over its pairs, weighted by confidence and smoothly corrected to the aligned
    depths of its anchors. Pairs with less than half the inliers of the best one do not count. None for a view without a
    pose."""
    if not alignment.registered[view]:
        return None
    rows = np.flatnonzero((data.pairs[:, 0] == view) & alignment.registered[data.pairs[:, 1]])
    rows = rows[alignment.pair_inliers[rows] >= 0.5 * alignment.pair_inliers[rows].max()]
    photo = photos[view]
    anchor_log_depth = np.log(alignment.depth[view])
    x, y = photo.anchor_pixels.T
    log_depth_sum, weight_sum, confidence_sum = (np.zeros(photo.colors.shape[:2]) for _ in range(3))
    for row in rows:
        depth, confidence = decoder.depth_map(photo, photos[data.pairs[row, 1]])
        positive = (depth > 0) & np.isfinite(depth)
        offsets = anchor_log_depth - np.log(np.where(positive, depth, np.nan)[y, x])
        offsets[data.confidence[row, 0] <= 0] = np.nan
        if not np.isfinite(offsets).any():
            continue
        log_scale = float(np.nanmedian(offsets))
        weight = np.where(positive, confidence, 0.0)
        log_depth_sum += weight * (np.log(np.where(positive, depth, 1.0)) + log_scale)
        weight_sum += weight
        confidence_sum += weight * confidence
    known = weight_sum > 0
    log_depth = log_depth_sum / np.where(known, weight_sum, 1.0)
    log_depth += _correction(anchor_log_depth - np.where(known, log_depth, np.nan)[y, x], known.shape)
    confidence = confidence_sum / np.where(known, weight_sum, 1.0)
    depth = np.where(known, np.exp(log_depth), np.nan)
    valid = known & (confidence >= min_confidence)
    valid &= ~depth_edges(np.where(valid, depth, 1.0), valid)
    image_from_map = np.linalg.inv(photo.network_from_image)
    pixels = transform_pixels(image_from_map, pixel_grid(*depth.shape))
    valid &= photo.shows(pixels)
    points = transform_points(alignment.world_from_cam[view], backproject(pixels, depth, alignment.K[view]))
    return PointMap(points, confidence, valid, photo.colors, image_from_map)


def _correction(offsets: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(h, w) smooth map of the anchors' offsets (A,) in log depth, outliers left out."""
    cv2 = optional.require("cv2", "dense point maps")
    grid = offsets.reshape(ANCHORS, ANCHORS)
    if not np.isfinite(grid).any():
        return np.zeros(shape)
    inliers = np.isfinite(grid) & (np.abs(grid - np.nanmedian(grid)) < MAX_CORRECTION)
    if not inliers.any():
        return np.zeros(shape)
    values, weight = np.where(inliers, grid, 0.0), inliers.astype(np.float64) + 1e-9
    smooth = cv2.GaussianBlur(values, (0, 0), 1.5) / cv2.GaussianBlur(weight, (0, 0), 1.5)
    return cv2.resize(smooth, shape[::-1], interpolation=cv2.INTER_LINEAR)
