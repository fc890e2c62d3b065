"""Photos whose camera only turned: no pair of them sees parallax, so no point of what they show has a place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dune_cli.geometry import two_view
from dune_cli.geometry import two_view as pair_checks
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.verification import SharedCamera, Verified

PAIRS_A_GROUP = 40  # that are looked at, those with the fewest matches first, which lie furthest apart
MATCHES_A_PAIR = 400
# Of the matches of a pair: more of them that no rotation explains are parallax. Eight panoramas of amateurs, lens
# distortion and all, have at most 0.20 in their worst pair; pairs of ten scenes 0.3 to 1.
PARALLAX_SHARE = 0.25
PLAIN_SHARE = 0.05  # fewer: nothing but a turn
EXIF_FACTORS = np.geomspace(0.85, 1.18, 9)  # how far off a focal length out of EXIF may be


@dataclass(frozen=True)
class PureRotations:
    """Verified `pairs` of groups of photos whose camera only turned; of their agreeing `matches` those that a rotation
    `explained`, both over the pairs that were looked at."""

    pairs: frozenset[tuple[int, int]]
    matches: int
    explained: int


def find_pure_rotations(
    found: Correspondences, verified: Verified, lenses: Sequence[SharedCamera], lens_of: Sequence[int], scale: float
) -> PureRotations:
    """The groups of photos that hang together without any parallax. `scale`: pixels of a photo per matched pixel.

    A pair that a rotation explains is no harm among others (two frames of a video, a panorama in front of which
    somebody took one step); a group without any other pair has no scene.
    """
    pairs = sorted(verified.geometry)
    edges = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(lens_of),) * 2)
    _, label = connected_components(graph, directed=False)
    turned: set[tuple[int, int]] = set()
    total = explained = 0
    for group in sorted({int(label[i]) for i, _ in pairs}):
        members = [pair for pair in pairs if label[pair[0]] == group]
        members.sort(key=lambda pair: (verified.counts[pair][1], pair))
        residuals = _residuals(found, verified, lenses, lens_of, members[:PAIRS_A_GROUP], scale)
        counts = {pair: (len(one), int(np.count_nonzero(one > 3 * scale))) for pair, one in residuals.items()}
        parallax = [
            pair
            for pair, (matches, moving) in counts.items()
            if moving >= max(pair_checks.MIN_MOVING, PARALLAX_SHARE * matches)
        ]
        wrong = {pair for pair in parallax if _contradicts(pair, residuals[pair], counts, scale)}
        if wrong == set(parallax):
            matches, moving = np.sum([c for pair, c in counts.items() if pair not in wrong], axis=0).tolist()
            if pair_checks.is_rotation(moving, matches):
                turned |= set(members)
                total, explained = total + matches, explained + matches - moving
    return PureRotations(frozenset(turned), total, explained)


def _contradicts(
    pair: tuple[int, int], residuals: np.ndarray, counts: dict[tuple[int, int], tuple[int, int]], scale: float
) -> bool:
    """Whether a pair that shows parallax cannot be right: from both photos the camera only turned to a third one, and
    what these two turns leave of parallax is far less than that."""
    moving = residuals > 3 * scale
    if np.count_nonzero(residuals > 12 * scale) < np.count_nonzero(moving) / 2:
        return False
    plain = {other for other, (matches, moving) in counts.items() if moving <= PLAIN_SHARE * matches}
    near = [{a if b == index else b for a, b in plain if index in (a, b)} for index in pair]
    return bool(near[0] & near[1])


def _residuals(
    found: Correspondences,
    verified: Verified,
    lenses: Sequence[SharedCamera],
    lens_of: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    scale: float,
) -> dict[tuple[int, int], np.ndarray]:
    """For each pair how far (a sample of) its agreeing matches (M,) lie from where a rotation puts them, in pixels.

    One camera of unknown focal length has the same one in all pairs: the one with which rotations leave least.
    """
    residuals = {}
    for pair in pairs:
        rows = np.asarray(verified.geometry[pair].inlier_matches)
        rows = rows[:: max(1, len(rows) // MATCHES_A_PAIR)]
        pixels = [found.keypoints[index][rows[:, side]] for side, index in enumerate(pair)]
        one, two = (lenses[lens_of[index]] for index in pair)
        residuals[pair] = two_view.rotation_only_by_focal(*pixels, one.K, two.K, _factors(one, two))
    middle = {pair: np.median(one, axis=1) for pair, one in residuals.items()}
    if len({lens_of[index] for pair in pairs for index in pair}) == 1:
        left = np.sum([np.log(np.maximum(one, 0.25 * scale)) for one in middle.values()], axis=0)
        return {pair: one[left.argmin()] for pair, one in residuals.items()}
    return {pair: one[middle[pair].argmin()] for pair, one in residuals.items()}


def _factors(one: SharedCamera, two: SharedCamera) -> np.ndarray:
    """On both focal lengths, that come into question."""
    if one.fixed and two.fixed:
        return np.ones(1)
    return EXIF_FACTORS if all(lens.fixed or lens.prior for lens in (one, two)) else two_view.FOCAL_FACTORS
