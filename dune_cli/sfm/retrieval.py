"""Which photos may show the same place: one global descriptor a photo, and nearest neighbours among them.

`describe_photos` pools an encoder's patch tokens. Without an encoder, `describe_keypoints` makes VLAD descriptors
(H. Jégou et al., "Aggregating local descriptors into a compact image representation", CVPR 2010; with the intra-
normalisation of R. Arandjelović and A. Zisserman, "All about VLAD", CVPR 2013) out of keypoints' descriptors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dune_cli import console
from dune_cli.io.cache import WorkFolder, key_of
from dune_cli.io.photos import read_photo
from dune_cli.matchers.matcher import resize
from dune_cli.sfm.photo_map import MapImage, PhotoMap

if TYPE_CHECKING:
    from torch import nn


DEFAULT_MODEL = "dune-mini"
SIZE_PX = 224
BLOCK_ROWS = 512
CLUSTERS = 32
SAMPLE = 40_000  # of keypoint descriptors that the clusters are learnt from


def encoder_descriptors(encoder: nn.Module, rgbs: Iterable[np.ndarray], size_px: int = SIZE_PX) -> np.ndarray:
    """(N, D) float32 of unit length: the mean of each photo's patch tokens, each of unit length; one pass a photo.

    `encoder` as `checkpoints.load.load_encoder` gives it; photos (H, W, 3) uint8 of any size, whose long side becomes
    `size_px`.
    """
    rows = [encoder_descriptor(encoder, rgb, size_px) for rgb in rgbs]
    return np.stack(rows) if rows else np.zeros((0, encoder.width), np.float32)


def encoder_descriptor(encoder: nn.Module, rgb: np.ndarray, size_px: int = SIZE_PX) -> np.ndarray:
    """(D,) float32: one photo's row of `describe_photos`."""
    import torch
    from torch.nn import functional as F

    small = resize(rgb, size_px, encoder.patch).rgb
    image = torch.tensor(small, device=next(encoder.parameters()).device).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        patches = encoder(image).patches[0].float()
        pooled = F.normalize(F.normalize(patches, dim=-1).mean(dim=0), dim=0)
    return pooled.cpu().numpy()


def vlad_descriptors(count: int, descriptors: Callable[[int], np.ndarray], seed: int = 0) -> np.ndarray:
    """(count, D) float32 of unit length: VLAD of each photo's keypoint descriptors, `descriptors(i)` (K, C).

    The clusters are learnt from a sample of all photos' descriptors, so rows compare only within one call. A photo
    without keypoints gets zeros.
    """
    rng = np.random.default_rng(seed)
    share = max(1, SAMPLE // max(count, 1))
    sample = [_pick(np.asarray(descriptors(i), np.float32), share, rng) for i in range(count)]
    centres = _clusters(np.concatenate(sample) if sample else np.zeros((0, 1), np.float32), seed)
    return np.stack([_vlad(np.asarray(descriptors(i), np.float32), centres) for i in range(count)])


def nearest_neighbours(descriptors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of the unit rows (N, D) its k most alike others: indices and cosines (N, min(k, N - 1)), best first."""
    return _best(descriptors, descriptors, min(k, len(descriptors) - 1), without_self=True)


def rank(queries: np.ndarray, descriptors: np.ndarray, k: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """For each of the unit rows `queries` (Q, D) the k most alike of `descriptors` (N, D) (None: all): indices and
    cosines (Q, k), best first; ties in the order of the rows."""
    count = len(descriptors)
    return _best(queries, descriptors, count if k is None else min(k, count), without_self=False)


def subtract_mean(descriptors: np.ndarray) -> np.ndarray:
    """Unit rows (N, D) without what all of them share (their mean), of unit length again; what tells them apart."""
    moved = descriptors - descriptors.mean(axis=0, keepdims=True)
    return moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)


def _best(queries: np.ndarray, descriptors: np.ndarray, k: int, without_self: bool) -> tuple[np.ndarray, np.ndarray]:
    indices = np.zeros((len(queries), max(k, 0)), np.int64)
    cosines = np.zeros((len(queries), max(k, 0)), np.float32)
    for start in range(0, len(queries), BLOCK_ROWS) if k > 0 else ():
        cosine = queries[start : start + BLOCK_ROWS] @ descriptors.T
        rows = np.arange(len(cosine))
        if without_self:
            cosine[rows, start + rows] = -np.inf
        part = (
            np.argpartition(-cosine, k - 1, axis=1)[:, :k]
            if k < cosine.shape[1]
            else np.tile(np.arange(cosine.shape[1]), (len(cosine), 1))
        )
        part.sort(axis=1)  # so that ties keep the order of the rows
        order = np.argsort(-np.take_along_axis(cosine, part, axis=1), axis=1, kind="stable")
        indices[start : start + len(rows)] = np.take_along_axis(part, order, axis=1)
        cosines[start : start + len(rows)] = np.take_along_axis(cosine, indices[start : start + len(rows)], axis=1)
    return indices, cosines


def _pick(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= count else rows[np.sort(rng.choice(len(rows), count, replace=False))]


def _clusters(sample: np.ndarray, seed: int) -> np.ndarray:
    """(CLUSTERS or fewer, C) centres by k-means."""
    import cv2

    if len(sample) <= CLUSTERS:
        return sample
    cv2.setRNGSeed(seed)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 1e-4)
    return cv2.kmeans(np.ascontiguousarray(sample), CLUSTERS, None, criteria, 1, cv2.KMEANS_PP_CENTERS)[2]


def _vlad(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(clusters * C,): for each cluster the sum of what its descriptors are off its centre, made one long, all of them
    together, too."""
    total = np.zeros_like(centres)
    if len(rows) and len(centres):
        own = ((centres**2).sum(axis=1) / 2 - rows @ centres.T).argmin(axis=1)
        np.add.at(total, own, rows - centres[own])
    total /= np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
    flat = total.reshape(-1)
    return flat / max(float(np.linalg.norm(flat)), 1e-12)


def encoder_key(encoder: nn.Module) -> Sequence[str]:
    """What a cached descriptor depends on: the encoder's weights and the size."""
    return (encoder.source.name, encoder.source.sha256 or "", str(SIZE_PX))


# Which photos of a map a query is worth matching with: those that an encoder finds alike, or all of a small map.


DESCRIPTORS = "descriptors"
DESCRIPTOR_LAYOUT = {"descriptor": ("f", ("D",))}
Candidates = list[tuple[int, float | None]]


class ImageRetriever:
    """The `count` photos of the map that are most alike to a query, by the cosine of pooled encoder tokens; where the
    map has no more than that many, all of them, and the encoder is never asked for."""

    def __init__(
        self, photo_map: PhotoMap, count: int, load_encoder: Callable[[], nn.Module], work: WorkFolder
    ) -> None:
        self.map, self.count, self.work = photo_map, count, work
        self._load, self._encoder = load_encoder, None
        self._descriptors: np.ndarray | None = None

    @property
    def encoder(self) -> nn.Module | None:
        """The encoder, once it was needed."""
        return self._encoder

    def for_query(self, rgb: np.ndarray) -> Candidates:
        """(index of a map image, likeness in [-1, 1]) from the most alike on; of a small map without likeness."""
        pass  # MERGED

        if len(self.map.images) <= self.count:
            return [(index, None) for index in range(len(self.map.images))]
        descriptors = self._of_map()
        likeness = rank(encoder_descriptors(self._ready(), [rgb]), descriptors, self.count)
        return [(int(index), float(cosine)) for index, cosine in zip(*(part[0] for part in likeness))]

    def _ready(self) -> nn.Module:
        if self._encoder is None:
            self._encoder = self._load()
        return self._encoder

    def _of_map(self) -> np.ndarray:
        """(N, D) descriptors of the map's photos, those kept from earlier runs not computed again."""
        pass  # MERGED

        if self._descriptors is not None:
            return self._descriptors
        encoder, images = self._ready(), self.map.images
        key = encoder_key(encoder)
        keys = {image.sha256: key_of(image.sha256, *key) for image in images}
        found = {sha256: self.work.read(DESCRIPTORS, own, DESCRIPTOR_LAYOUT) for sha256, own in keys.items()}
        missing = [image for image in images if found[image.sha256] is None]
        photos = console.progress(_photos(missing), "map", total=len(missing), unit="photo")
        for image, descriptor in zip(missing, encoder_descriptors(encoder, photos)):
            found[image.sha256] = {"descriptor": descriptor}
            self.work.write(DESCRIPTORS, keys[image.sha256], {"descriptor": descriptor})
        self._descriptors = np.stack([found[image.sha256]["descriptor"] for image in images])
        return self._descriptors


def _photos(images: list[MapImage]) -> Iterator[np.ndarray]:
    return (read_photo(image.file).rgb for image in images)
