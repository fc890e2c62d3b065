"""Image retrieval: one global descriptor a photo, nearest neighbours among them, and the map photos most like a query.

`encoder_descriptors` pools an encoder's patch tokens. Without an encoder, `vlad_descriptors` makes VLAD descriptors
(H. Jégou et al., "Aggregating local descriptors into a compact image representation", CVPR 2010; with the intra-
normalisation of R. Arandjelović and A. Zisserman, "All about VLAD", CVPR 2013) of keypoint descriptors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dune_cli import console
from dune_cli.io.cache import WorkFolder, key_of
from dune_cli.io.photos import read_photo
from dune_cli.matchers.matcher import resize
from dune_cli.sfm.photo_map import PhotoMap

if TYPE_CHECKING:
    from torch import nn

DEFAULT_MODEL = "dune-mini"
DESCRIPTORS = "descriptors"  # kind of cache entry
DESCRIPTOR_LAYOUT = {"descriptor": ("f", ("D",))}
MAP_INDEX = "map-index"  # kind of cache entry: the descriptors of all photos of a map
MAP_INDEX_LAYOUT = {"descriptors": ("f", ("N", "D"))}
SIZE_PX = 224
BLOCK_ROWS = 512
CLUSTERS = 32
SAMPLE = 40_000  # keypoint descriptors that the clusters are learnt from
Candidates = list[tuple[int, float | None]]  # index of a map image, similarity


@dataclass(frozen=True)
class DescriptorExtractor:
    """`describe`: photo (H, W, 3) uint8 -> global descriptor (D,) float32 of unit length. `key`: what it depends on.
    `reload`: makes the same in another process; None where that is not known."""

    name: str
    key: tuple[str, ...]
    describe: Callable[[np.ndarray], np.ndarray]
    reload: Callable[[], DescriptorExtractor] | None = None


def encoder_descriptor_extractor(encoder: nn.Module) -> DescriptorExtractor:
    """Pooled patch tokens of an encoder, as `checkpoints.loader.load_encoder` gives it."""
    key = (encoder.source.name, encoder.source.sha256 or "", str(SIZE_PX))
    return DescriptorExtractor(encoder.source.name, key, lambda rgb: encoder_descriptor(encoder, rgb))


def load_descriptor_extractor(name: str, device: str) -> DescriptorExtractor:
    """That of the encoder with this registry name or file. Raises what `checkpoints.loader.load_encoder` does."""
    from dune_cli.checkpoints.loader import load_encoder

    file = Path(name).expanduser()
    name = str(file.absolute()) if file.is_file() else name
    extractor = encoder_descriptor_extractor(load_encoder(name, device))
    return replace(extractor, reload=partial(load_descriptor_extractor, name, device))


def encoder_descriptors(encoder: nn.Module, rgbs: Iterable[np.ndarray], size_px: int = SIZE_PX) -> np.ndarray:
    """(N, D) float32: the `encoder_descriptor` of each photo."""
    rows = [encoder_descriptor(encoder, rgb, size_px) for rgb in rgbs]
    return np.stack(rows) if rows else np.zeros((0, encoder.width), np.float32)


def encoder_descriptor(encoder: nn.Module, rgb: np.ndarray, size_px: int = SIZE_PX) -> np.ndarray:
    """(D,) float32 of unit length: the mean of a photo's patch tokens, each of unit length.

    The photo (H, W, 3) uint8 has any size; its long side is resized to `size_px`.
    """
    return _pooled(encoder, resize(rgb, size_px, encoder.patch).rgb[None])[0]


def _pooled(encoder: nn.Module, images: np.ndarray) -> np.ndarray:
    """(B, D) float32 of the network's inputs (B, h, w, 3) uint8."""
    import torch

    from dune_cli.models.pooling import pool

    batch = torch.tensor(images, device=next(encoder.parameters()).device).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        return pool(encoder(batch), "mean").cpu().numpy()


def cached_descriptor(
    sha256: str, extractor: DescriptorExtractor, cache: WorkFolder, read_rgb: Callable[[], np.ndarray]
) -> np.ndarray:
    """(D,) the global descriptor of the photo with this hash; read and described where the cache has none."""

    def described() -> dict[str, np.ndarray]:
        return {"descriptor": extractor.describe(read_rgb())}

    key = partial(descriptor_key, sha256, extractor)
    return cache.arrays(DESCRIPTORS, key, described, DESCRIPTOR_LAYOUT)["descriptor"]


def descriptor_key(sha256: str, extractor: DescriptorExtractor) -> str:
    """Of the photo's content and what the extractor depends on."""
    return key_of(sha256, *extractor.key)


def vlad_descriptors(count: int, descriptors: Callable[[int], np.ndarray], seed: int = 0) -> np.ndarray:
    """(count, D) float32 of unit length: VLAD of each photo's keypoint descriptors, `descriptors(i)` (K, C).

    The clusters are learnt from a sample of all photos' descriptors, so rows compare only within one call. A photo
    without keypoints gets zeros.
    """
    rng = np.random.default_rng(seed)
    share = max(1, SAMPLE // max(count, 1))
    sample = [_subsample(np.asarray(descriptors(i), np.float32), share, rng) for i in range(count)]
    centres = _cluster_centres(np.concatenate(sample) if sample else np.zeros((0, 1), np.float32), seed)
    return np.stack([_vlad(np.asarray(descriptors(i), np.float32), centres) for i in range(count)])


def _subsample(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= count else rows[np.sort(rng.choice(len(rows), count, replace=False))]


def _cluster_centres(sample: np.ndarray, seed: int) -> np.ndarray:
    """(CLUSTERS or fewer, C) centres by k-means."""
    import cv2

    if len(sample) <= CLUSTERS:
        return sample
    cv2.setRNGSeed(seed)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 1e-4)
    return cv2.kmeans(np.ascontiguousarray(sample), CLUSTERS, None, criteria, 1, cv2.KMEANS_PP_CENTERS)[2]


def _vlad(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(clusters * C,): the sum of the residuals of each cluster's descriptors, normalised a cluster and as a whole."""
    total = np.zeros_like(centres)
    if len(rows) and len(centres):
        nearest = ((centres**2).sum(axis=1) / 2 - rows @ centres.T).argmin(axis=1)
        np.add.at(total, nearest, rows - centres[nearest])
    total /= np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
    flat = total.reshape(-1)
    return flat / max(float(np.linalg.norm(flat)), 1e-12)


def nearest_neighbours(descriptors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of the unit rows (N, D) the k most similar others: indices and cosines (N, min(k, N - 1)), best
    first."""
    return _most_similar(descriptors, descriptors, min(k, len(descriptors) - 1), without_self=True)


def rank(queries: np.ndarray, descriptors: np.ndarray, k: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """For each of the unit rows `queries` (Q, D) the k most similar of `descriptors` (N, D) (None: all): indices and
    cosines (Q, k), best first; ties in the order of the rows."""
    count = len(descriptors)
    return _most_similar(queries, descriptors, count if k is None else min(k, count), without_self=False)


def subtract_mean(descriptors: np.ndarray) -> np.ndarray:
    """Unit rows (N, D) less their mean, normalised again."""
    residuals = descriptors - descriptors.mean(axis=0, keepdims=True)
    return residuals / np.maximum(np.linalg.norm(residuals, axis=1, keepdims=True), 1e-12)


def _most_similar(
    queries: np.ndarray, descriptors: np.ndarray, k: int, without_self: bool
) -> tuple[np.ndarray, np.ndarray]:
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


class ImageRetriever:
    """The `count` photos of a map that are most similar to a query, by the cosine of pooled encoder tokens. A map of no
    more photos gives all of them, and the encoder is not loaded."""

    def __init__(
        self, photo_map: PhotoMap, count: int, load_encoder: Callable[[], nn.Module], cache: WorkFolder
    ) -> None:
        self.map, self.count, self.cache = photo_map, count, cache
        self._load_encoder = load_encoder
        self._encoder: nn.Module | None = None
        self._descriptors: np.ndarray | None = None

    @property
    def encoder(self) -> nn.Module | None:
        """The encoder, once it is loaded."""
        return self._encoder

    def retrieve(self, rgb: np.ndarray) -> Candidates:
        """(index of a map image, similarity in [-1, 1]), the most similar first; None as similarity where the map gives
        all its images."""
        if self.takes_all:
            return [(index, None) for index in range(len(self.map.images))]
        return self.retrieve_prepared([self.prepare(rgb)])[0]

    @property
    def takes_all(self) -> bool:
        """Whether the map is so small that every query gets all its images."""
        return len(self.map.images) <= self.count

    def load(self) -> tuple[nn.Module, np.ndarray]:
        """The encoder, and the (N, D) descriptors of the map's photos: made on first use, from the cache where they are
        there."""
        if self._encoder is None:
            self._encoder = self._load_encoder()
        if self._descriptors is None:
            self._descriptors = self._describe_map(self._encoder)
        return self._encoder, self._descriptors

    def prepare(self, rgb: np.ndarray) -> np.ndarray:
        """A photo (H, W, 3) uint8 as the encoder's input (h, w, 3) uint8."""
        return resize(rgb, SIZE_PX, self.load()[0].patch).rgb

    def retrieve_prepared(self, images: Sequence[np.ndarray]) -> list[Candidates]:
        """`retrieve` of several prepared photos: those of one size go through the encoder together."""
        encoder, of_map = self.load()
        rows = np.zeros((len(images), of_map.shape[1]), np.float32)
        for shape in dict.fromkeys(image.shape for image in images):
            same = [index for index, image in enumerate(images) if image.shape == shape]
            rows[same] = _pooled(encoder, np.stack([images[index] for index in same]))
        indices, cosines = rank(rows, of_map, self.count)
        return [[(int(i), float(c)) for i, c in zip(*found)] for found in zip(indices, cosines)]

    def _describe_map(self, encoder: nn.Module) -> np.ndarray:
        """(N, D) descriptors of the map's photos, from the cache where they are there. All of them are one entry, which
        is read without the photos as long as their files keep size and time: a map of thousands is opened at once."""
        extractor = encoder_descriptor_extractor(encoder)

        def described() -> dict[str, np.ndarray]:
            images = console.progress(self.map.images, "map", total=len(self.map.images), unit="photo")
            rows = [
                cached_descriptor(image.sha256, extractor, self.cache, lambda file=image.file: read_photo(file).rgb)
                for image in images
            ]
            return {"descriptors": np.stack(rows)}

        def key() -> str:
            files = [(image.name, image.file.absolute(), image.file.stat()) for image in self.map.images]
            return key_of(*extractor.key, [(name, file, stat.st_size, stat.st_mtime_ns) for name, file, stat in files])

        return self.cache.arrays(MAP_INDEX, key, described, MAP_INDEX_LAYOUT)["descriptors"]
