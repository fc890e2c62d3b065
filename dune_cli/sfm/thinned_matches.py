"""Fewer matches for a first model: those of the keypoints that most pairs have.

Poses need few points, and the time of a mapper grows with their number: 30 photos with 650,000 inliers took it 35
processor seconds, and 9 with 2,000 keypoints a photo, for the same poses after the calibration with all points.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np

from dune_cli.sfm.verification import VerifiedPairs

MANY_INLIERS = 100_000  # of all pairs, above which a part of them makes the first model
KEYPOINTS = 2_000  # of a photo
LEAST_INLIERS = 200  # of a pair
WORTH = 0.5  # of the inliers: thinning that leaves more does not pay


def thinned(verified: VerifiedPairs) -> VerifiedPairs | None:
    """The verified pairs with the inliers between the keypoints that have most partners, at most KEYPOINTS a photo, and
    at least LEAST_INLIERS a pair where it has as many. None where that saves little."""
    inliers = {pair: np.asarray(geometry.inlier_matches) for pair, geometry in verified.geometry.items()}
    total = sum(map(len, inliers.values()))
    if total <= MANY_INLIERS:
        return None
    partners = _partners(inliers)
    kept = {photo: _most(counts) for photo, counts in partners.items()}
    chosen = {}
    for (i, j), matches in inliers.items():
        both = kept[i][matches[:, 0]] & kept[j][matches[:, 1]]
        missing = LEAST_INLIERS - np.count_nonzero(both)
        if missing > 0:
            others = np.flatnonzero(~both)
            weight = partners[i][matches[others, 0]] + partners[j][matches[others, 1]]
            both[others[np.argsort(-weight, kind="stable")[:missing]]] = True
        chosen[i, j] = matches[both]
    if sum(map(len, chosen.values())) > WORTH * total:
        return None
    geometry = {pair: copy.copy(found) for pair, found in verified.geometry.items()}
    for pair, found in geometry.items():
        found.inlier_matches = chosen[pair]
    return replace(verified, geometry=geometry)


def _partners(inliers: dict[tuple[int, int], np.ndarray]) -> dict[int, np.ndarray]:
    """photo -> how many pairs have each of its keypoints as an inlier."""
    sides: dict[int, list[np.ndarray]] = {}
    for pair, matches in inliers.items():
        for column, photo in enumerate(pair):
            sides.setdefault(photo, []).append(matches[:, column])
    return {photo: np.bincount(np.concatenate(keypoints)) for photo, keypoints in sides.items()}


def _most(counts: np.ndarray) -> np.ndarray:
    """(K,) bool: the KEYPOINTS keypoints with the largest counts."""
    kept = np.zeros(len(counts), bool)
    kept[np.argsort(-counts, kind="stable")[:KEYPOINTS]] = True
    return kept
