"""Matching of pairs of photos: every pair is matched once and cached; the result is keypoints and index pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console, runtime
from dune_cli.errors import UserError
from dune_cli.io.cache import WorkFolder, key_of
from dune_cli.io.photos import read_photo
from dune_cli.matchers.matcher import CacheableMatcher, FeatureMatcher, Matcher
from dune_cli.sfm.features import MEMORY_BYTES, FeatureStore, ImageFeatures, colors_at
from dune_cli.sfm.pairs import Pairs
from dune_cli.sfm.shared_work import SharedWork

MATCHES = "matches"  # kind of cache entry
INDEX_LAYOUT = {"1": ("u", ("M",)), "2": ("u", ("M",)), "scores": ("f", ("M",))}
PIXEL_LAYOUT = {
    **dict.fromkeys("12", ("f", ("M", 2))),
    **{f"colors{side}": ("u", ("M", 3)) for side in "12"},
    "scores": ("f", ("M",)),
    "sizes": ("f", (2,)),
}
PAIRS_A_BLOCK = 16
PairBlock = Sequence[tuple[ImageFeatures, ImageFeatures]]
PairArrays = dict[tuple[int, int], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Correspondences:
    """The keypoints of photos and the matches of pairs.

    Of each photo: `keypoints` (K, 2) in its own pixels, their `colors` (K, 3) uint8, and `pixel_sizes`, how many of its
    pixels a pixel of the matched image spans. `matches`: pair (i, j) of photos -> keypoint indices (M, 2) uint32.
    """

    keypoints: tuple[np.ndarray, ...]
    colors: tuple[np.ndarray, ...]
    pixel_sizes: tuple[float, ...]
    matches: dict[tuple[int, int], np.ndarray]

    def pixels(self, pair: tuple[int, int], matches: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The pixels (M, 2) in both photos of a pair's matches, or of the given ones (M, 2) of its keypoints."""
        matches = self.matches[pair] if matches is None else matches
        return self.keypoints[pair[0]][matches[:, 0]], self.keypoints[pair[1]][matches[:, 1]]

    def joined(self, other: Correspondences) -> Correspondences:
        """With the keypoints and matches of another matcher, of the same photos."""
        first = [len(keypoints) for keypoints in self.keypoints]
        matches = dict(self.matches)
        for (i, j), added in other.matches.items():
            own = matches.get((i, j), np.zeros((0, 2), np.uint32))
            matches[i, j] = np.concatenate([own, added + np.array([first[i], first[j]], np.uint32)])
        return Correspondences(
            tuple(map(np.concatenate, zip(self.keypoints, other.keypoints))),
            tuple(map(np.concatenate, zip(self.colors, other.colors))),
            tuple(map(max, zip(self.pixel_sizes, other.pixel_sizes))),
            matches,
        )

    @property
    def pixel_size(self) -> float:
        """Pixels of a photo per matched pixel, the median over the matched photos, at least 1: the unit of errors."""
        used = sorted({index for pair in self.matches for index in pair})
        return max(1.0, float(np.median([self.pixel_sizes[index] for index in used]))) if used else 1.0


def match_pairs(
    images: Sequence[ImageFeatures],
    pairs: Pairs,
    matcher: CacheableMatcher,
    cache: WorkFolder,
    limit: int | None = None,
) -> Correspondences:
    """Matches of the `pairs`, from the cache where they are there; at most `limit` pairs that are not.

    Matchers without repeatable keypoints get some: the pixels of all their matches in a photo, merged within one pixel
    of the matched image. UserError for cached matches that do not fit the features. The workers of a `SharedWork` match
    what is missing, unless there is a `limit`.
    """
    if isinstance(cache, SharedWork) and matcher.reload is not None and limit is None:
        _match_by_workers(images, pairs, matcher.reload, cache)
    store = FeatureStore(matcher, cache)
    matcher.pairs_ahead = len(pairs)
    jobs = (_PairJob.read(images[i], images[j], matcher, store, cache) for i, j in pairs)
    threads = None if matcher.one_thread and limit is None else 1
    arrays: PairArrays = {}
    new = 0
    found = zip(pairs, runtime.ordered_map(lambda job: (job, job.matches(matcher)), jobs, threads))
    for pair, (job, matches) in console.progress(found, "matching", len(pairs), "pair"):
        arrays[pair] = job.keep(matches, cache)
        new += job.known is None
        if limit is not None and new >= limit:
            break
    if isinstance(matcher, FeatureMatcher):
        return _from_indices(images, arrays, store)
    return _merge_keypoints(len(images), arrays)


@dataclass(frozen=True)
class MatchJobs:
    """For an engine: matches pairs of photos into the work folder `work`, a path or URL. Up to about `memory_bytes` of
    features are held."""

    load_matcher: Callable[[], Matcher]
    work: Path | str
    memory_bytes: int

    def __call__(self) -> Callable[[PairBlock], Sequence[int]]:
        matcher, cache = self.load_matcher(), WorkFolder(self.work)
        assert isinstance(matcher, CacheableMatcher)
        store = FeatureStore(matcher, cache, self.memory_bytes)

        def match(block: PairBlock) -> Sequence[int]:
            matcher.pairs_ahead = len(block)
            for image1, image2 in block:
                job = _PairJob.read(image1, image2, matcher, store, cache)
                job.keep(job.matches(matcher), cache)
            return (len(block),)

        return match


def _match_by_workers(
    images: Sequence[ImageFeatures], pairs: Pairs, load_matcher: Callable[[], Matcher], cache: SharedWork
) -> None:
    """Matches the pairs that the cache lacks. Consecutive pairs, which share photos, go to one worker."""
    plain = [
        replace(image, info=replace(image.info, path=image.info.path.absolute()), descriptor=None) for image in images
    ]
    missing = [(plain[i], plain[j]) for i, j in pairs if not cache.has(MATCHES, matches_key(images[i], images[j]))]
    size = max(1, min(PAIRS_A_BLOCK, len(missing) // (2 * cache.engine.workers)))
    blocks = [missing[start : start + size] for start in range(0, len(missing), size)]
    assert cache.place is not None
    jobs = MatchJobs(load_matcher, cache.place, MEMORY_BYTES // cache.engine.workers)
    cache.fill(jobs, blocks, (MATCHES,), "matching", "block")


def matches_key(image1: ImageFeatures, image2: ImageFeatures) -> str:
    """Of two photos' features, in whichever order."""
    return key_of(*sorted((image1.key, image2.key)))


@dataclass(frozen=True)
class _PairJob:
    """A pair of photos to be matched in the order of their keys, `swapped` where that is not the caller's order.
    `known`: its cached arrays; else it has the `features`."""

    images: tuple[ImageFeatures, ImageFeatures]
    swapped: bool
    known: dict[str, np.ndarray] | None
    features: tuple[Any, Any] | None

    @classmethod
    def read(
        cls,
        image1: ImageFeatures,
        image2: ImageFeatures,
        matcher: CacheableMatcher,
        store: FeatureStore,
        cache: WorkFolder,
    ) -> _PairJob:
        first, second = sorted((image1, image2), key=lambda image: image.key)
        layout = INDEX_LAYOUT if isinstance(matcher, FeatureMatcher) else PIXEL_LAYOUT
        known = cache.read(MATCHES, matches_key(first, second), layout)
        features = (store.load(first), store.load(second)) if known is None else None
        return cls((first, second), first is not image1, known, features)

    def matches(self, matcher: CacheableMatcher) -> dict[str, np.ndarray]:
        """The cached arrays, or those that the matcher finds."""
        if self.features is None:
            assert self.known is not None
            return self.known
        if isinstance(matcher, FeatureMatcher):
            index1, index2, scores = matcher.match_indices(*self.features)
            return {"1": index1.astype(np.uint32), "2": index2.astype(np.uint32), "scores": scores}
        matches = matcher.match_features(*self.features)
        arrays = {"1": matches.points1, "2": matches.points2, "scores": matches.scores}
        arrays["sizes"] = np.array([matches.pixel_size1, matches.pixel_size2])
        for side, image in zip("12", self.images):
            arrays[f"colors{side}"] = colors_at(read_photo(image.info.path).rgb, arrays[side])
        return arrays

    def keep(self, arrays: dict[str, np.ndarray], cache: WorkFolder) -> dict[str, np.ndarray]:
        """Writes new arrays into the cache; returns them in the caller's order of the photos."""
        if self.known is None:
            cache.write(MATCHES, matches_key(*self.images), arrays)
        if not self.swapped:
            return arrays
        other = {"1": "2", "2": "1", "colors1": "colors2", "colors2": "colors1"}
        arrays = {other.get(name, name): array for name, array in arrays.items()}
        return arrays | ({"sizes": arrays["sizes"][::-1]} if "sizes" in arrays else {})


def _from_indices(images: Sequence[ImageFeatures], arrays: PairArrays, store: FeatureStore) -> Correspondences:
    keypoints, colors, sizes = [], [], []
    used = {index for pair in arrays for index in pair}
    for index, image in enumerate(images):
        if index not in used:
            keypoints.append(np.zeros((0, 2)))
            colors.append(np.zeros((0, 3), np.uint8))
            sizes.append(1.0)
            continue
        features = store.load(image)
        keypoints.append(features.photo.to_original(features.points))
        colors.append(store.colors(image))
        sizes.append(features.photo.pixel_size)
    matches = {pair: np.stack([found["1"], found["2"]], axis=1) for pair, found in arrays.items()}
    for (i, j), indices in matches.items():
        if (indices >= (len(keypoints[i]), len(keypoints[j]))).any():
            raise UserError(
                f"the work folder's matches of {images[i].info.path} and {images[j].info.path} do not fit their "
                "features; name a new one with --work"
            )
    return Correspondences(tuple(keypoints), tuple(colors), tuple(sizes), matches)


def _merge_keypoints(count: int, arrays: PairArrays) -> Correspondences:
    """Keypoints from the pixels of matches: the mean of those in one cell, which is as wide as a matched pixel."""
    pixels: list[list[np.ndarray]] = [[] for _ in range(count)]
    shades: list[list[np.ndarray]] = [[] for _ in range(count)]
    sizes = np.ones(count)
    for (i, j), found in arrays.items():
        for index, side in ((i, "1"), (j, "2")):
            pixels[index].append(found[side])
            shades[index].append(found[f"colors{side}"])
        sizes[i], sizes[j] = found["sizes"]
    keypoints, colors, cells = [], [], []
    for index in range(count):
        points = np.concatenate([np.zeros((0, 2)), *pixels[index]])
        shade = np.concatenate([np.zeros((0, 3), np.uint8), *shades[index]])
        grid = np.rint(points / sizes[index]).astype(np.int64)
        _, first, cell = np.unique(grid, axis=0, return_index=True, return_inverse=True)
        cell = cell.reshape(-1)
        amount = np.bincount(cell, minlength=len(first))[:, None]
        total = np.stack([np.bincount(cell, points[:, axis], len(first)) for axis in (0, 1)], axis=1)
        keypoints.append(total / np.maximum(amount, 1))
        colors.append(shade[first])
        cells.append(cell)
    matches, start = {}, [0] * count
    for (i, j), found in arrays.items():
        columns = []
        for index in (i, j):
            columns.append(cells[index][start[index] : start[index] + len(found["1"])])
            start[index] += len(found["1"])
        indices = np.stack(columns, axis=1)[np.argsort(-found["scores"], kind="stable")]
        for side in (0, 1):  # a keypoint has one match in the other photo: the one with the highest score
            indices = indices[np.sort(np.unique(indices[:, side], return_index=True)[1])]
        matches[i, j] = indices.astype(np.uint32)
    return Correspondences(tuple(keypoints), tuple(colors), tuple(sizes.tolist()), matches)


def match_counts_text(matches: int, inliers: int, motion: str) -> str:
    """How many matches there are and how many agree on `motion` ("a pose"), as text; 0 inliers stands for too few."""
    if not matches:
        return "no match"
    agreeing = f"of which {inliers} agree" if inliers else "too few of which agree"
    return f"{matches} match{'es' if matches > 1 else ''}, {agreeing} on {motion}"
