"""All photos of a reconstruction, each decoded and looked at once: its facts, its features, its global descriptor."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dune_cli import console
from dune_cli.io.cache import WorkFolder, key_of
from dune_cli.io.photos import Photo, PhotoFacts, read_photo
from dune_cli.matchers.matcher import CacheableMatcher, FeatureMatcher
from dune_cli.provenance import sha256_of
from dune_cli.sfm.retrieval import encoder_descriptor, encoder_key

if TYPE_CHECKING:
    from torch import nn

FEATURES, PHOTOS, DESCRIPTORS = "features", "photos", "descriptors"
FACT_COUNT = 4  # of a photo: width, height, EXIF focal length, EXIF orientation
MEMORY_BYTES = 1_000_000_000  # of features that are held at once


@dataclass(frozen=True)
class DescriptorExtractor:
    """What makes a photo's global descriptor: `describe(rgb)` gives (D,) float32 of unit length, and depends on
    `key`."""

    name: str
    key: tuple[str, ...]
    describe: Callable[[np.ndarray], np.ndarray]


def encoder_descriptor_extractor(encoder: nn.Module) -> DescriptorExtractor:
    """Pooled patch tokens of an encoder, as `load_encoder` gives it."""
    return DescriptorExtractor(
        encoder.source.name, tuple(encoder_key(encoder)), lambda rgb: encoder_descriptor(encoder, rgb)
    )


@dataclass(frozen=True)
class ImageFeatures:
    """A photo that was looked at: `key` of its features in the work folder, its global descriptor (D,) if asked for.
    `turns`: how many quarters it was turned clockwise for its features, which lie at the pixels of the photo as it is.
    """

    facts: PhotoFacts
    key: str
    descriptor: np.ndarray | None
    turns: int = 0


def extract_features(
    paths: Sequence[Path],
    matcher: CacheableMatcher,
    work: WorkFolder,
    describer: DescriptorExtractor | None = None,
    limit: int | None = None,
) -> list[ImageFeatures]:
    """Every photo's facts, features (in the work folder) and descriptor; at most `limit` photos that are new to it.

    A photo is decoded only where something of it is missing. Raises what `read_photo` does; what is done is kept.
    """
    found = []
    new = 0
    for path in console.progress(paths, "looking at photos", len(paths), "photo"):
        before = sum(work.counts[kind] for kind in (FEATURES, DESCRIPTORS))
        found.append(_look(path, matcher, work, describer))
        new += sum(work.counts[kind] for kind in (FEATURES, DESCRIPTORS)) > before
        if limit is not None and new >= limit:
            break
    return found


def extract_rotated(looked: ImageFeatures, turns: int, matcher: CacheableMatcher, work: WorkFolder) -> ImageFeatures:
    """The same photo after `turns` quarter turns clockwise."""
    again = _look(looked.facts.path, matcher, work, None, turns)
    return replace(looked, key=again.key, turns=turns)


def _look(
    path: Path, matcher: CacheableMatcher, work: WorkFolder, describer: DescriptorExtractor | None, turns: int = 0
) -> ImageFeatures:
    photo: Photo | None = None
    facts = _known_facts(path, work)
    if facts is None:
        photo = read_photo(path)
        facts = photo.facts
        exif = np.nan if facts.exif_focal_px is None else facts.exif_focal_px
        work.write(
            PHOTOS, key_of(facts.sha256), {"facts": np.array([facts.width, facts.height, exif, facts.orientation])}
        )
    key = features_key(facts.sha256, matcher, turns)
    if not work.has(FEATURES, key):
        photo = photo or read_photo(path)
        features = matcher.extract_rotated(photo.rgb, turns)
        packed = matcher.pack(features)
        if isinstance(matcher, FeatureMatcher):
            packed["colors"] = colors_at(photo.rgb, features.photo.to_original(features.points))
        work.write(FEATURES, key, packed)
    descriptor = None
    if describer is not None:
        own = key_of(facts.sha256, *describer.key)
        kept = work.read(DESCRIPTORS, own, {"descriptor": ("f", ("D",))})
        if kept is None:
            photo = photo or read_photo(path)
            kept = {"descriptor": describer.describe(photo.rgb)}
            work.write(DESCRIPTORS, own, kept)
        descriptor = kept["descriptor"]
    return ImageFeatures(facts, key, descriptor, turns)


def _known_facts(path: Path, work: WorkFolder) -> PhotoFacts | None:
    if not path.is_file():
        return None
    sha256 = sha256_of(path)
    kept = work.read(PHOTOS, key_of(sha256), {"facts": ("F", (FACT_COUNT,))})
    if kept is None:
        return None
    width, height, exif, orientation = kept["facts"].tolist()
    return PhotoFacts(path, int(width), int(height), sha256, None if np.isnan(exif) else exif, int(orientation))


def features_key(sha256: str, matcher: CacheableMatcher, turns: int = 0) -> str:
    """Of the photo's content, the matcher, its weights and its working size, and of the quarter turns."""
    source = matcher.source
    turned = [f"turned {90 * turns}"] if turns else []
    return key_of(sha256, matcher.name, source.name, source.sha256, matcher.working_size_px, *turned)


def colors_at(rgb: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(K, 3) uint8 of the pixels nearest to `pixels` (K, 2)."""
    x, y = np.rint(pixels).astype(int).reshape(-1, 2).T
    return rgb[np.clip(y, 0, rgb.shape[0] - 1), np.clip(x, 0, rgb.shape[1] - 1)]


class FeatureStore:
    """Photos' features out of the work folder; those used last are held in memory, up to about a gigabyte."""

    def __init__(self, matcher: CacheableMatcher, work: WorkFolder, memory_bytes: int = MEMORY_BYTES) -> None:
        self._matcher, self._work, self._memory = matcher, work, memory_bytes
        self._held: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._bytes = 0

    def colours(self, looked: ImageFeatures) -> np.ndarray:
        """(K, 3) uint8 of the keypoints of a matcher that has lasting ones."""
        return self._packed(looked)["colors"]

    def descriptors(self, looked: ImageFeatures) -> np.ndarray:
        """(K, C) float32 of a matcher of keypoints."""
        return self._packed(looked)["descriptors"].astype(np.float32)

    def take(self, looked: ImageFeatures) -> Any:
        """The features, as the matcher has them. A damaged entry is made again from the photo."""
        if looked.key in self._held:
            self._held.move_to_end(looked.key)
            return self._held[looked.key][0]
        packed = self._packed(looked)
        features = self._matcher.unpack(packed)
        size = 2 * sum(array.nbytes for array in packed.values())  # float32 in memory
        self._held[looked.key] = (features, size)
        self._bytes += size
        while self._bytes > self._memory and len(self._held) > 2:
            self._bytes -= self._held.popitem(last=False)[1][1]
        return features

    def _packed(self, looked: ImageFeatures) -> dict[str, np.ndarray]:
        layout = dict(self._matcher.packed_layout or {})
        if isinstance(self._matcher, FeatureMatcher):
            layout["colors"] = ("u", ("N", 3))
        packed = self._work.read(FEATURES, looked.key, layout)
        if packed is None:
            _look(looked.facts.path, self._matcher, self._work, None, looked.turns)
            packed = self._work.read(FEATURES, looked.key, layout)
            assert packed is not None, "it was written just now"
        return packed
