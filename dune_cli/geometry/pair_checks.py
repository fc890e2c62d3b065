"""What tells a pair of views that gives a pose from chance, from one view twice, and from a turn on the spot.

Pixels (M, 2) of the matches, pixel centres at integers; thresholds in pixels of the photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lgamma, log, pi

import numpy as np

from dune_cli.geometry.two_view import rotation_only, rotation_only_any_focal

MIN_MOVING, MIN_MOVING_SHARE = 8, 0.1  # matches that no rotation explains; fewer leave the direction to chance


def is_same_view(pixels1: np.ndarray, pixels2: np.ndarray, pixel_sizes_px: tuple[float, float]) -> bool:
    """Whether four of five matches stay within one matched pixel: the same photo twice, or a camera on a tripod."""
    return len(pixels1) > 0 and bool(np.percentile(np.linalg.norm(pixels1 - pixels2, axis=1), 80) < max(pixel_sizes_px))


def unexplained_by_rotation(
    pixels1: np.ndarray,
    pixels2: np.ndarray,
    K1: np.ndarray,
    K2: np.ndarray,
    threshold_px: float,
    focal_unknown: bool = False,
) -> int:
    """How many matches lie over three thresholds from where the best rotation alone puts them in view 2.

    `focal_unknown`: the K are guesses, so the best common factor on their focal lengths is looked for, too.
    """
    best = rotation_only_any_focal if focal_unknown else rotation_only
    return int(np.count_nonzero(best(pixels1, pixels2, K1, K2)[1] > 3 * threshold_px))


def is_rotation(moving: int, matches: int) -> bool:
    """Whether so few of the agreeing matches move otherwise that the direction of motion would be chance."""
    return moving < max(MIN_MOVING, MIN_MOVING_SHARE * matches)


def log10_chance_epipolar(
    inliers: int, matches: int, thresholds_px: tuple[float, float], sizes: Sequence[tuple[int, int]]
) -> float:
    """log10 of the number of five-point models that would find so many inliers among random matches by chance.

    The a-contrario test of L. Moisan and B. Stival, "A probabilistic criterion to detect rigid point matches between
    two images", IJCV 2004: a random point lies within a threshold of an epipolar line with a probability of at most
    2 * threshold * diagonal / area. Of the two photos, `sizes` (width, height) each, the one matched more coarsely
    decides. Below 0 chance does not explain the pair; the lower the surer.
    """
    chance = max(2 * t * float(np.hypot(w, h)) / (w * h) for t, (w, h) in zip(thresholds_px, sizes))
    return _log10_false_alarms(inliers, matches, chance, sample=5, solutions=10)


def log10_chance_pnp(inliers: int, matches: int, threshold_px: float, size: tuple[float, float]) -> float:
    """The same for three-point poses of a camera (`size`: width, height): a random pixel lies within the threshold of
    another one with a probability of pi * threshold^2 / area."""
    chance = pi * threshold_px**2 / (size[0] * size[1])
    return _log10_false_alarms(inliers, matches, chance, sample=3, solutions=4)


def _log10_false_alarms(inliers: int, matches: int, chance: float, sample: int, solutions: int) -> float:
    if inliers <= sample or matches <= sample:
        return float("inf")
    models = solutions * (matches - sample)
    log_number = log(models) + _log_choose(matches, inliers) + _log_choose(inliers, sample)
    return (log_number + (inliers - sample) * log(min(1.0, chance))) / log(10)


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
