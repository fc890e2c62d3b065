"""Which photos of a map a query is worth matching with: those that an encoder finds alike, or all of a small map."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from dune_cli import console
from dune_cli.io.cache import WorkFolder, key_of
from dune_cli.io.photos import read_photo
from dune_cli.sfm.photo_map import MapImage, PhotoMap

if TYPE_CHECKING:
    from torch import nn

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
        from dune_cli.sfm import retrieval

        if len(self.map.images) <= self.count:
            return [(index, None) for index in range(len(self.map.images))]
        descriptors = self._of_map()
        likeness = retrieval.rank(retrieval.describe_photos(self._ready(), [rgb]), descriptors, self.count)
        return [(int(index), float(cosine)) for index, cosine in zip(*(part[0] for part in likeness))]

    def _ready(self) -> nn.Module:
        if self._encoder is None:
            self._encoder = self._load()
        return self._encoder

    def _of_map(self) -> np.ndarray:
        """(N, D) descriptors of the map's photos, those kept from earlier runs not computed again."""
        from dune_cli.sfm import retrieval

        if self._descriptors is not None:
            return self._descriptors
        encoder, images = self._ready(), self.map.images
        key = retrieval.encoder_key(encoder)
        keys = {image.sha256: key_of(image.sha256, *key) for image in images}
        found = {sha256: self.work.read(DESCRIPTORS, own, DESCRIPTOR_LAYOUT) for sha256, own in keys.items()}
        missing = [image for image in images if found[image.sha256] is None]
        photos = console.progress(_photos(missing), "map", total=len(missing), unit="photo")
        for image, descriptor in zip(missing, retrieval.describe_photos(encoder, photos)):
            found[image.sha256] = {"descriptor": descriptor}
            self.work.write(DESCRIPTORS, keys[image.sha256], {"descriptor": descriptor})
        self._descriptors = np.stack([found[image.sha256]["descriptor"] for image in images])
        return self._descriptors


def _photos(images: list[MapImage]) -> Iterator[np.ndarray]:
    return (read_photo(image.file).rgb for image in images)
