"""Matches of two photos that can be evidence of a pose: none of what does not move in the picture, and, where a matcher
takes photos upright only, those of the quarter turn of the second photo with which most of them verify."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log10
from typing import Any

import numpy as np

from dune_cli.geometry import epipolar, pair_checks
from dune_cli.geometry.fixed_pixels import Thumbnail, moving_matches
from dune_cli.matchers.base import Matcher, Matches, SplitMatcher

TURNS = 4
# log10 of the number of such agreements to expect by chance, above which a pair counts as not verified and quarter
# turns are tried; `dune reloc` refuses such pairs
VERIFIED = -12.0


@dataclass(frozen=True)
class Sighted:
    """A photo (H, W, 3) uint8 and what `SplitMatcher.extract` found in it; other matchers have no `features`."""

    rgb: np.ndarray
    features: Any = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]


def sight(matcher: Matcher, rgb: np.ndarray) -> Sighted:
    """A photo with its features."""
    return Sighted(rgb, matcher.extract(rgb) if isinstance(matcher, SplitMatcher) else None)


def find_matches(matcher: Matcher, one: Sighted, two: Sighted, seed: int = 0) -> Matches:
    """The matches of two photos that may count.

    Turned copies of the second photo are looked at only where the matches of both photos as they are do not verify, and
    taken only where they verify in spite of the number of tries.
    """
    if not isinstance(matcher, SplitMatcher):
        return moving_only(matcher.match(one.rgb, two.rgb), one.rgb, two.rgb, seed)
    upright = moving_only(matcher.match_features(one.features, two.features), one.rgb, two.rgb, seed)
    if matcher.turn_invariant or verify(upright, one.size, two.size, seed)[1] <= VERIFIED:
        return upright
    best, most = upright, 0
    for turns in range(1, TURNS):
        found = matcher.match_features(one.features, matcher.extract_turned(two.rgb, turns))
        found = replace(moving_only(found, one.rgb, two.rgb, seed), turned_deg=90 * turns, tries=TURNS)
        inliers, chance = verify(found, one.size, two.size, seed)
        if inliers > most and chance <= VERIFIED:
            best, most = found, inliers
    return best


def moving_only(matches: Matches, rgb1: np.ndarray, rgb2: np.ndarray, seed: int = 0) -> Matches:
    """Without what lies at the same pixels of both photos and does not agree with the rest."""
    return matches.only(moving(matches, rgb1, rgb2, seed))


def moving(matches: Matches, rgb1: np.ndarray, rgb2: np.ndarray, seed: int = 0) -> np.ndarray:
    """(M,) bool: which matches `moving_only` leaves."""
    sizes = (rgb1.shape[1], rgb1.shape[0]), (rgb2.shape[1], rgb2.shape[0])
    return moving_matches(
        matches.points1,
        matches.points2,
        sizes,
        (matches.pixel_size1, matches.pixel_size2),
        lambda: (Thumbnail.of(rgb1), Thumbnail.of(rgb2)),
        seed,
    )


def verify(matches: Matches, size1: tuple[int, int], size2: tuple[int, int], seed: int = 0) -> tuple[int, float]:
    """How many matches agree with one epipolar geometry, and log10 of the number of such agreements to expect by
    chance, all `tries` counted."""
    sizes_px = matches.pixel_size1, matches.pixel_size2
    _, agree = epipolar.fundamental_inliers(matches.points1, matches.points2, max(sizes_px), seed, 5000)
    inliers = int(agree.sum())
    chance = pair_checks.log10_chance_epipolar(inliers, len(agree), sizes_px, (size1, size2))
    return inliers, chance + log10(matches.tries)
