"""Feature extraction: every photo is decoded once for its metadata, features and global descriptor, all of them cached.

Entries of the cache are keyed by what they depend on: the photo's content, the matcher or encoder with its weights, the
working size, and the quarter turns.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from dune_cli import console, runtime
from dune_cli.io.cache import WorkFolder, key_of
from dune_cli.io.photos import Photo, PhotoInfo, read_photo
from dune_cli.matchers.matcher import CacheableMatcher, FeatureMatcher, Matcher
from dune_cli.provenance import sha256_of
from dune_cli.sfm.retrieval import DESCRIPTORS, DescriptorExtractor, cached_descriptor, descriptor_key
from dune_cli.sfm.shared_work import SharedWork

FEATURES, PHOTOS = "features", "photos"  # kinds of cache entries
METADATA_LAYOUT = {"facts": ("F", (5,))}  # width, height, EXIF focal length, EXIF orientation, panorama
METADATA_FORMAT = 2  # another number has them read again
MEMORY_BYTES = 1_000_000_000  # of features that are held at once
T = TypeVar("T")


@dataclass(frozen=True)
class ImageFeatures:
    """A photo whose features are in the cache under `key`, with its global `descriptor` (D,) if there is one.

    `quarter_turns`: how often the photo was rotated clockwise by 90 degrees for extraction. Keypoints are at the pixels
    of the photo as it is.
    """

    info: PhotoInfo
    key: str
    descriptor: np.ndarray | None = None
    quarter_turns: int = 0


def extract_features(
    paths: Sequence[Path],
    matcher: CacheableMatcher,
    cache: WorkFolder,
    descriptors: DescriptorExtractor | None = None,
    limit: int | None = None,
) -> list[ImageFeatures]:
    """The metadata, features and (with `descriptors`) global descriptor of every photo; it ends after `limit` photos
    that were not in the cache.

    A photo is decoded only where something of it is missing. Raises what `read_photo` does; what is done is kept. The
    workers of a `SharedWork` do it, unless there is a `limit`.
    """
    if isinstance(cache, SharedWork) and matcher.reload is not None and limit is None:
        load_descriptors = None if descriptors is None else descriptors.reload
        missing = [path.absolute() for path in paths if not _is_extracted(path, matcher, cache, descriptors)]
        assert cache.place is not None
        jobs = FeatureJobs(matcher.reload, load_descriptors, cache.place)
        cache.fill(jobs, missing, (PHOTOS, FEATURES, DESCRIPTORS), "extracting features", "photo")
    threads = None if matcher.one_thread and descriptors is None and limit is None else 1
    extracted = runtime.ordered_map(lambda path: _extract(path, matcher, cache, descriptors), paths, threads)
    images = []
    new, computed = 0, _computed(cache)
    for image in console.progress(extracted, "extracting features", len(paths), "photo"):
        images.append(image)
        new, computed = new + (_computed(cache) > computed), _computed(cache)
        if limit is not None and new >= limit:
            break
    return images


def _computed(cache: WorkFolder) -> int:
    return sum(cache.counts[kind] for kind in (FEATURES, DESCRIPTORS))


@dataclass(frozen=True)
class FeatureJobs:
    """For an engine: extracts what is missing of a photo into the work folder `work`, a path or URL."""

    load_matcher: Callable[[], Matcher]
    load_descriptors: Callable[[], DescriptorExtractor] | None
    work: Path | str

    def __call__(self) -> Callable[[Path], Sequence[Path]]:
        matcher, cache = self.load_matcher(), WorkFolder(self.work)
        assert isinstance(matcher, CacheableMatcher)
        descriptors = None if self.load_descriptors is None else self.load_descriptors()

        def extract(path: Path) -> Sequence[Path]:
            _extract(path, matcher, cache, descriptors)
            return (path,)

        return extract


def _is_extracted(
    path: Path, matcher: CacheableMatcher, cache: WorkFolder, descriptors: DescriptorExtractor | None
) -> bool:
    """Whether the cache has all of a photo."""
    if not path.is_file():
        return True  # `extract_features` says what is wrong
    sha256 = sha256_of(path)
    known = cache.has(PHOTOS, key_of(METADATA_FORMAT, sha256)) and cache.has(FEATURES, features_key(sha256, matcher))
    return known and (descriptors is None or cache.has(DESCRIPTORS, descriptor_key(sha256, descriptors)))


def extract_rotated(
    image: ImageFeatures, quarter_turns: int, matcher: CacheableMatcher, cache: WorkFolder
) -> ImageFeatures:
    """The features of a photo that is rotated clockwise by quarter turns before extraction."""
    rotated = _extract(image.info.path, matcher, cache, None, quarter_turns)
    return replace(image, key=rotated.key, quarter_turns=quarter_turns)


def _extract(
    path: Path,
    matcher: CacheableMatcher,
    cache: WorkFolder,
    descriptors: DescriptorExtractor | None,
    quarter_turns: int = 0,
) -> ImageFeatures:
    photo: Photo | None = None

    def decoded() -> Photo:
        nonlocal photo
        if photo is None:
            photo = read_photo(path)
        return photo

    info = _cached_metadata(path, cache)
    if info is None:
        info = decoded().info
        exif = np.nan if info.exif_focal_px is None else info.exif_focal_px
        metadata = np.array([info.width, info.height, exif, info.orientation, info.panorama])
        cache.write(PHOTOS, key_of(METADATA_FORMAT, info.sha256), {"facts": metadata})
    key = features_key(info.sha256, matcher, quarter_turns)
    if not cache.has(FEATURES, key):
        cache.write(FEATURES, key, pack_features(matcher, decoded().rgb, quarter_turns))
    descriptor = None
    if descriptors is not None:
        descriptor = cached_descriptor(info.sha256, descriptors, cache, lambda: decoded().rgb)
    return ImageFeatures(info, key, descriptor, quarter_turns)


def _cached_metadata(path: Path, cache: WorkFolder) -> PhotoInfo | None:
    if not path.is_file():
        return None
    sha256 = sha256_of(path)
    arrays = cache.read(PHOTOS, key_of(METADATA_FORMAT, sha256), METADATA_LAYOUT)
    if arrays is None:
        return None
    width, height, exif, orientation, panorama = arrays["facts"].tolist()
    focal_px = None if np.isnan(exif) else exif
    return PhotoInfo(path, int(width), int(height), sha256, focal_px, int(orientation), bool(panorama))


def features_key(sha256: str, matcher: CacheableMatcher, quarter_turns: int = 0) -> str:
    """Of the photo's content, the matcher, its weights and its working size, and of the quarter turns."""
    source = matcher.source
    more = [f"turned {90 * quarter_turns}"] if quarter_turns else []
    if isinstance(matcher, FeatureMatcher) and matcher.revision:
        more.append(f"revision {matcher.revision}")
    return key_of(sha256, matcher.name, source.name, source.sha256, matcher.working_size_px, *more)


def pack_features(matcher: CacheableMatcher, rgb: np.ndarray, quarter_turns: int = 0) -> dict[str, np.ndarray]:
    """The features of a photo (H, W, 3) uint8 as a cache entry; keypoints have their colours."""
    features = matcher.extract_rotated(rgb, quarter_turns)
    packed = matcher.pack(features)
    if isinstance(matcher, FeatureMatcher):
        packed["colors"] = colors_at(rgb, features.photo.to_original(features.points))
    return packed


def packed_layout(matcher: CacheableMatcher) -> dict[str, Any]:
    """The layout of `pack_features`."""
    colors = {"colors": ("u", ("N", 3))} if isinstance(matcher, FeatureMatcher) else {}
    return {**(matcher.packed_layout or {}), **colors}


def colors_at(rgb: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(K, 3) uint8 of the pixels nearest to `pixels` (K, 2)."""
    x, y = np.rint(pixels).astype(int).reshape(-1, 2).T
    return rgb[np.clip(y, 0, rgb.shape[0] - 1), np.clip(x, 0, rgb.shape[1] - 1)]


class FeatureStore:
    """Features by their key, from the cache or from their photo; those used last are held in memory, up to about
    `memory_bytes`."""

    def __init__(self, matcher: CacheableMatcher, cache: WorkFolder, memory_bytes: int = MEMORY_BYTES) -> None:
        self._matcher, self._cache = matcher, cache
        self._held: LeastRecentlyUsed[tuple[Any, int]] = LeastRecentlyUsed(memory_bytes, lambda entry: entry[1])

    def load(self, image: ImageFeatures) -> Any:
        """The features of a photo, as the matcher has them."""
        return self.get(image.key, lambda: read_photo(image.info.path).rgb, image.quarter_turns)

    def get(self, key: str, read_rgb: Callable[[], np.ndarray], quarter_turns: int = 0) -> Any:
        """The features with the `features_key`; where the cache has none, or a damaged entry, they are extracted."""

        def unpacked() -> tuple[Any, int]:
            packed = self._packed(key, read_rgb, quarter_turns)
            return self._matcher.unpack(packed), 2 * sum(array.nbytes for array in packed.values())  # float32 in memory

        return self._held.get(key, unpacked)[0]

    def colors(self, image: ImageFeatures) -> np.ndarray:
        """(K, 3) uint8 of the keypoints of a `FeatureMatcher`."""
        return self._packed_of(image)["colors"]

    def descriptors(self, image: ImageFeatures) -> np.ndarray:
        """(K, C) float32 of the keypoints of a `FeatureMatcher`."""
        return self._packed_of(image)["descriptors"].astype(np.float32)

    def _packed_of(self, image: ImageFeatures) -> Mapping[str, np.ndarray]:
        return self._packed(image.key, lambda: read_photo(image.info.path).rgb, image.quarter_turns)

    def _packed(self, key: str, read_rgb: Callable[[], np.ndarray], quarter_turns: int) -> Mapping[str, np.ndarray]:
        # unpacked from the cache's half precision the first time, too, so that a second run computes the same
        return self._cache.arrays(
            FEATURES,
            lambda: key,
            lambda: pack_features(self._matcher, read_rgb(), quarter_turns),
            packed_layout(self._matcher),
        )


class LeastRecentlyUsed(Generic[T]):
    """Values by key; beyond `limit` (a number of values, or the sum of their sizes) those used longest ago are dropped.
    The last two are always kept."""

    def __init__(self, limit: int, size_of: Callable[[T], int] = lambda value: 1) -> None:
        self._limit, self._size_of, self._size = limit, size_of, 0
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of `key`, made where it is not held."""
        if key not in self._values:
            self._values[key] = value = make()
            self._size += self._size_of(value)
            while self._size > self._limit and len(self._values) > 2:
                self._size -= self._size_of(self._values.popitem(last=False)[1])
        self._values.move_to_end(key)
        return self._values[key]
