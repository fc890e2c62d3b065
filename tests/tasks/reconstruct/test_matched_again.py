"""Which photos many photos' matches hardly tie, and with which others a second matcher matches them, in rounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dune_cli.io.cache import WorkFolder
from dune_cli.io.photos import PhotoInfo
from dune_cli.matchers.sift import Sift
from dune_cli.provenance import Run
from dune_cli.sfm.cameras import PhotoCameras
from dune_cli.sfm.features import ImageFeatures
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.verification import VerifiedPairs
from dune_cli.tasks.reconstruct.config import MatchesConfig
from dune_cli.tasks.reconstruct.matched_again import SecondMatcher, weakly_tied
from dune_cli.tasks.reconstruct.matched_photos import MatchedPhotos


def verified(inliers: dict[tuple[int, int], int]) -> VerifiedPairs:
    """Pairs with these many inliers, of twice as many matches."""
    return VerifiedPairs(dict.fromkeys(inliers, "geometry"), {pair: (2 * n, n) for pair, n in inliers.items()})


def image(index: int) -> ImageFeatures:
    return ImageFeatures(PhotoInfo(Path(f"{index}.jpg"), 40, 30, str(index), None, 1), str(index))


def matched(count: int, inliers: dict[tuple[int, int], int], copies: dict[int, int] | None = None) -> MatchedPhotos:
    """A video of `count` frames, each of which is to be matched with the three that follow."""
    pairs = [(i, j) for i in range(count) for j in range(i + 1, min(i + 4, count))]
    nothing = Correspondences((), (), (), {})
    return MatchedPhotos([None] * count, (), PhotoCameras((), ()), copies or {}, pairs, nothing, verified(inliers))


def test_photos_that_few_inliers_tie_to_the_largest_well_tied_group() -> None:
    tied = {(0, 1): 90, (1, 2): 90, (0, 2): 25, (1, 3): 40, (2, 3): 30, (2, 4): 59, (4, 5): 70, (5, 6): 80}
    assert weakly_tied(verified(tied), 8, {7: 0}) == [4, 5, 6]  # 3 by two pairs together; 4 to 6 by one weak pair
    assert weakly_tied(verified(tied | {(3, 5): 15, (3, 4): 15}), 8, [7]) == [6]  # then 4 and 5; 6 by one pair only
    assert weakly_tied(verified({}), 3) == [1, 2]


def test_a_chain_is_matched_from_its_ends_and_what_is_held_no_more() -> None:
    photos = matched(9, {(0, 1): 99, (7, 8): 99})
    alike = {(i, j): (20 - 5 * (j - i), 0) for i, j in photos.pairs} | photos.verified.counts  # the nearer, the more
    photos = replace(photos, verified=replace(photos.verified, counts=alike))
    images = [image(index) for index in range(9)]
    second = SecondMatcher(photos, images, Sift(), MatchesConfig(), Run(), WorkFolder(None))
    left_out = [2, 3, 4, 5, 6]
    candidates = second._candidates(left_out)
    assert candidates[4] == [(3, 4), (4, 5), (2, 4), (4, 6), (1, 4), (4, 7)]
    first = second._next_pairs(left_out, candidates)
    assert first == [(0, 2), (1, 2), (6, 7), (6, 8)]  # 3 to 5 wait for their neighbours
    second.tried.update(first)
    second.found = verified({(0, 2): 40, (1, 2): 40, (6, 7): 90, (6, 8): 20})
    assert second._held(left_out) == {0, 1, 2, 6, 7, 8}
    then = [(0, 3), (1, 3), (1, 4), (2, 3), (2, 4), (2, 5), (4, 6), (5, 6), (5, 7)]
    assert second._next_pairs(left_out, candidates) == then
    second.tried.update(pair for pairs in candidates.values() for pair in pairs)
    assert second._next_pairs(left_out, candidates) == []


def test_more_alike_photos_come_first() -> None:
    photos = matched(4, {})
    counted = {(0, 3): (9, 0), (1, 3): (30, 0), (2, 3): (12, 0)}
    photos = replace(photos, verified=VerifiedPairs({}, counted))
    second = SecondMatcher(photos, [image(i) for i in range(4)], Sift(), MatchesConfig(), Run(), WorkFolder(None))
    assert second._candidates([3]) == {3: [(1, 3), (2, 3), (0, 3)]}
    assert np.shape(second._next_pairs([3], second._candidates([3]))) == (3, 2)
