"""Matches of all pairs as keypoints a photo and index pairs a pair of photos, each pair matched once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.io.cache import WorkFolder, key_of
from dune_cli.io.photos import read_photo
from dune_cli.matchers.matcher import CacheableMatcher, FeatureMatcher
from dune_cli.sfm.features import FeatureStore, ImageFeatures, colors_at
from dune_cli.sfm.pairs import Pairs

MATCHES = "matches"
INDEX_LAYOUT = {"1": ("u", ("M",)), "2": ("u", ("M",)), "scores": ("f", ("M",))}
PLACE_LAYOUT = {
    **dict.fromkeys("12", ("f", ("M", 2))),
    **{f"colors{side}": ("u", ("M", 3)) for side in "12"},
    "scores": ("f", ("M",)),
    "sizes": ("f", (2,)),
}


@dataclass(frozen=True)
class Correspondences:
    """For each photo its `keypoints` (K, 2) in its own pixels, their `colors` (K, 3) uint8, and `pixel_sizes`, how many
    of its pixels a pixel of the matched image spans; for each pair (i, j) of photos the keypoint indices (M, 2) uint32
    that match."""

    keypoints: tuple[np.ndarray, ...]
    colors: tuple[np.ndarray, ...]
    pixel_sizes: tuple[float, ...]
    matches: dict[tuple[int, int], np.ndarray]


def match_pairs(
    looks: Sequence[ImageFeatures], pairs: Pairs, matcher: CacheableMatcher, work: WorkFolder, limit: int | None = None
) -> Correspondences:
    """Matches of the `pairs`, out of the work folder where they are there; at most `limit` that are not.

    Matchers without lasting keypoints get some: the places of all their matches in a photo, those of one pixel of the
    matched image made one.
    """
    shelf = FeatureStore(matcher, work)
    kept: dict[tuple[int, int], dict[str, np.ndarray]] = {}
    new = 0
    for i, j in console.progress(pairs, "matching", len(pairs), "pair"):
        if limit is not None and new >= limit:
            break
        before = work.counts[MATCHES]
        kept[i, j] = _match(looks[i], looks[j], matcher, shelf, work)
        new += work.counts[MATCHES] > before
    if isinstance(matcher, FeatureMatcher):
        return _indexed(looks, kept, shelf)
    return _gathered(len(looks), kept)


def _match(
    one: ImageFeatures, two: ImageFeatures, matcher: CacheableMatcher, shelf: FeatureStore, work: WorkFolder
) -> dict[str, np.ndarray]:
    """The arrays of a pair, whichever of the photos comes first: they are matched and kept in the order of their
    keys."""
    first, second = sorted((one, two), key=lambda look: look.key)
    key = key_of(first.key, second.key)
    arrays = work.read(MATCHES, key, INDEX_LAYOUT if isinstance(matcher, FeatureMatcher) else PLACE_LAYOUT)
    if arrays is None:
        features = shelf.take(first), shelf.take(second)
        if isinstance(matcher, FeatureMatcher):
            index1, index2, scores = matcher.match_indices(*features)
            arrays = {"1": index1.astype(np.uint32), "2": index2.astype(np.uint32), "scores": scores}
        else:
            found = matcher.match_features(*features)
            arrays = {"1": found.points1, "2": found.points2, "scores": found.scores}
            arrays["sizes"] = np.array([found.pixel_size1, found.pixel_size2])
            for name, look, points in (("1", first, found.points1), ("2", second, found.points2)):
                arrays[f"colors{name}"] = colors_at(read_photo(look.facts.path).rgb, points)
        work.write(MATCHES, key, arrays)
    if first is one:
        return arrays
    swapped = {"1": "2", "2": "1", "colors1": "colors2", "colors2": "colors1"}
    arrays = {swapped.get(name, name): array for name, array in arrays.items()}
    return arrays | ({"sizes": arrays["sizes"][::-1]} if "sizes" in arrays else {})


def _indexed(
    looks: Sequence[ImageFeatures], kept: dict[tuple[int, int], dict[str, np.ndarray]], shelf: FeatureStore
) -> Correspondences:
    keypoints, colors, sizes = [], [], []
    used = {index for pair in kept for index in pair}
    for index, look in enumerate(looks):
        if index not in used:
            keypoints.append(np.zeros((0, 2)))
            colors.append(np.zeros((0, 3), np.uint8))
            sizes.append(1.0)
            continue
        features = shelf.take(look)
        keypoints.append(features.photo.to_original(features.points))
        colors.append(shelf.colours(look))
        sizes.append(features.photo.pixel_size)
    matches = {pair: np.stack([arrays["1"], arrays["2"]], axis=1) for pair, arrays in kept.items()}
    for (i, j), found in matches.items():
        if (found >= (len(keypoints[i]), len(keypoints[j]))).any():
            raise UserError(
                f"the work folder's matches of {looks[i].facts.path} and {looks[j].facts.path} do not fit their "
                "features; name a new one with --work"
            )
    return Correspondences(tuple(keypoints), tuple(colors), tuple(sizes), matches)


def _gathered(count: int, kept: dict[tuple[int, int], dict[str, np.ndarray]]) -> Correspondences:
    """Keypoints out of matched places: the mean of those that fall into one cell, as wide as a matched pixel."""
    places: list[list[np.ndarray]] = [[] for _ in range(count)]
    shades: list[list[np.ndarray]] = [[] for _ in range(count)]
    sizes = np.ones(count)
    for (i, j), arrays in kept.items():
        for index, side in ((i, "1"), (j, "2")):
            places[index].append(arrays[side])
            shades[index].append(arrays[f"colors{side}"])
        sizes[i], sizes[j] = arrays["sizes"]
    keypoints, colors, cells = [], [], []
    for index in range(count):
        points = np.concatenate([np.zeros((0, 2)), *places[index]])
        shade = np.concatenate([np.zeros((0, 3), np.uint8), *shades[index]])
        whole = np.rint(points / sizes[index]).astype(np.int64)
        _, first, cell = np.unique(whole, axis=0, return_index=True, return_inverse=True)
        cell = cell.reshape(-1)
        amount = np.bincount(cell, minlength=len(first))[:, None]
        total = np.stack([np.bincount(cell, points[:, axis], len(first)) for axis in (0, 1)], axis=1)
        keypoints.append(total / np.maximum(amount, 1))
        colors.append(shade[first])
        cells.append(cell)
    matches, at = {}, [0] * count
    for (i, j), arrays in kept.items():
        rows = []
        for index in (i, j):
            rows.append(cells[index][at[index] : at[index] + len(arrays["1"])])
            at[index] += len(arrays["1"])
        both = np.stack(rows, axis=1)
        # a keypoint goes with one other: of several, the surest match stays
        order = np.argsort(-arrays["scores"], kind="stable")
        both = both[order]
        for side in (0, 1):
            both = both[np.sort(np.unique(both[:, side], return_index=True)[1])]
        matches[i, j] = both.astype(np.uint32)
    return Correspondences(tuple(keypoints), tuple(colors), tuple(sizes.tolist()), matches)
