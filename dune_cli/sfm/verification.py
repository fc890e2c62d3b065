"""Which matched pairs agree on a motion: pycolmap's two-view geometries of what MAGSAC leaves of the matches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dune_cli import console, optional
from dune_cli.geometry import epipolar, two_view
from dune_cli.geometry import two_view as pair_checks
from dune_cli.geometry.cameras import HALF_PIXEL
from dune_cli.geometry.pose_confidence import confidence_from_evidence, two_view_evidence
from dune_cli.io.cache import WorkFolder
from dune_cli.matchers.filtering import (
    MAX_LOG10_NFA_VERIFIED,
    QUARTER_TURNS,
    Thumbnail,
    non_static_matches,
    verify_epipolar,
)
from dune_cli.matchers.matcher import CacheableMatcher
from dune_cli.sfm.features import FeatureStore, ImageFeatures, extract_rotated
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.pairs import Pairs
from dune_cli.sfm.scene import ImagePair

MIN_INLIERS = 15
MAX_LOG10_NFA = -4.0
THRESHOLD_PX = 2.0  # half of COLMAP's own: cameras of three real sets came out up to twice as exact


@dataclass(frozen=True)
class SharedCamera:
    """A camera that photos share: size, `K` (3, 3), and whether that is kept (`fixed`), a good start (`prior`), or a
    guess (neither)."""

    width: int
    height: int
    K: np.ndarray
    fixed: bool
    prior: bool


@dataclass(frozen=True)
class VerifiedPairs:
    """Pairs whose matches agree on a motion: for each pair its `geometry` (pycolmap's), and for every pair that was
    compared how many matches there were and how many agree. `pure_rotations`: pairs that agree and are
    left out of `geometry`, because their connected component shows no parallax. `static_matches`: how many matches of a
    pair were left out, because they lie at the same pixels of both photos. `sure`: the confidence of those with
    a geometry."""

    geometry: dict[tuple[int, int], Any]
    counts: dict[tuple[int, int], tuple[int, int]]
    pure_rotations: frozenset[tuple[int, int]] = frozenset()
    static_matches: Mapping[tuple[int, int], int] = field(default_factory=dict)
    sure: Mapping[tuple[int, int], float] = field(default_factory=dict)

    def pairs(self) -> list[ImagePair]:
        """All that were compared."""
        return [ImagePair(pair, *counts, self.sure.get(pair, 0.0)) for pair, counts in self.counts.items()]


def verify_pairs(
    found: Correspondences,
    lenses: Sequence[SharedCamera],
    lens_of: Sequence[int],
    seed: int,
    scale: float,
    thumbnail_of: Callable[[int], Thumbnail],
) -> VerifiedPairs:
    """Two-view geometries of all pairs (COLMAP's, which tells calibrated, uncalibrated, planar and panoramic ones
    apart); one that chance explains is none. `scale`: pixels of a photo per matched pixel.

    Matches of what does not move in the picture (a caption on all photos) join no photos; `thumbnail_of` gives a photo
    that has such matches.
    """
    pycolmap = quiet_pycolmap()
    options = pycolmap.TwoViewGeometryOptions()
    options.min_num_inliers = MIN_INLIERS
    options.ransac.random_seed = seed
    options.ransac.max_error = THRESHOLD_PX * scale
    cameras = [colmap_camera(pycolmap, lens) for lens in lenses]
    geometry, counts, fixed, sure = {}, {}, {}, {}
    for (i, j), matches in console.progress(found.matches.items(), "verifying", len(found.matches), "pair"):
        inliers = 0
        if len(matches) >= MIN_INLIERS:
            one, two = cameras[lens_of[i]], cameras[lens_of[j]]
            points = [found.keypoints[index] + HALF_PIXEL for index in (i, j)]
            sizes = tuple((lens.width, lens.height) for lens in (lenses[lens_of[i]], lenses[lens_of[j]]))
            keep = non_static_matches(
                *(found.keypoints[index][matches[:, side]] for side, index in enumerate((i, j))),
                sizes,
                (scale, scale),
                lambda i=i, j=j: (thumbnail_of(i), thumbnail_of(j)),
                seed,
            )
            if not keep.all():
                fixed[i, j] = int(np.count_nonzero(~keep))
                matches = matches[keep]
            places = [points[side][matches[:, side]] for side in (0, 1)]
            # milliseconds, where pycolmap's RANSAC, which stops early only where most matches are right, takes a second
            good = matches[epipolar.fundamental_inliers(*places, THRESHOLD_PX * scale, seed)[1]]
            estimate = pycolmap.estimate_two_view_geometry(one, points[0], two, points[1], good, options)
            inliers = len(estimate.inlier_matches)
            limits = (THRESHOLD_PX * scale,) * 2
            alarms = two_view.log10_nfa_epipolar(inliers, len(matches), limits, sizes)
            if inliers >= MIN_INLIERS and alarms <= MAX_LOG10_NFA:
                geometry[i, j] = estimate
                where = [found.keypoints[index][matches[:, side]] for side, index in enumerate((i, j))]
                agree = np.isin(matches[:, 0], np.asarray(estimate.inlier_matches)[:, 0])
                sure[i, j] = _confidence(*where, agree, lenses[lens_of[i]], lenses[lens_of[j]], scale, seed)
        counts[i, j] = (len(matches), inliers)
    return VerifiedPairs(geometry, counts, static_matches=fixed, sure=sure)


def _confidence(
    points1: np.ndarray,
    points2: np.ndarray,
    agree: np.ndarray,
    one: SharedCamera,
    two: SharedCamera,
    scale: float,
    seed: int,
) -> float:
    """Of a pair of which `agree` (M,) bool of its matches were verified."""
    runs = [
        epipolar.estimate_relative_pose(points1[agree], points2[agree], one.K, two.K, THRESHOLD_PX * scale, number)
        for number in (seed, seed + 1)
    ]
    poses = [epipolar.RelativePose(run.cam2_from_cam1, agree) for run in runs if run is not None]
    if not poses:
        return 0.0
    sizes = (one.width, one.height), (two.width, two.height)
    known = all(lens.fixed or lens.prior for lens in (one, two))
    pixels = THRESHOLD_PX * scale, THRESHOLD_PX * scale
    return confidence_from_evidence(
        two_view_evidence(points1, points2, one.K, two.K, poses[0], poses[1:], sizes, pixels, seed, focal_known=known)
    )


def quiet_pycolmap() -> Any:
    """The package, without its remarks."""
    pycolmap = optional.import_pycolmap("structure from motion")
    pycolmap.logging.minloglevel = max(pycolmap.logging.minloglevel, 3)  # its remarks are not ours
    return pycolmap


def colmap_camera(pycolmap: Any, lens: SharedCamera) -> Any:
    """A fixed lens as PINHOLE, others as SIMPLE_RADIAL, whose distortion is found with the rest."""
    fx, fy, cx, cy = lens.K[0, 0], lens.K[1, 1], lens.K[0, 2] + HALF_PIXEL, lens.K[1, 2] + HALF_PIXEL
    if lens.fixed:
        model, params = "PINHOLE", [fx, fy, cx, cy]
    else:
        model, params = "SIMPLE_RADIAL", [float(np.sqrt(fx * fy)), cx, cy, 0.0]
    camera = pycolmap.Camera(model=model, width=lens.width, height=lens.height, params=params)
    camera.has_prior_focal_length = lens.fixed or lens.prior
    return camera


# Photos whose camera only turned: no pair of them sees parallax, so no point of what they show has a place.


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
    found: Correspondences,
    verified: VerifiedPairs,
    lenses: Sequence[SharedCamera],
    lens_of: Sequence[int],
    scale: float,
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
    verified: VerifiedPairs,
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


# Photos that lie on their side or their head: those that hang together with nothing are matched again after quarter
# turns, where the matcher takes photos upright only.


PHOTOS_A_GROUP, PARTNERS = 2, 3  # that are tried of each group


def rotate_disconnected_components(
    looks: Sequence[ImageFeatures],
    pairs: Pairs,
    verified: VerifiedPairs,
    same: Mapping[int, int],
    matcher: CacheableMatcher,
    work: WorkFolder,
    seed: int,
) -> list[ImageFeatures]:
    """The photos, those of groups that hang together with the largest one only after a quarter turn looked at again so
    (`Looked.turns`). A group has all its photos turned alike."""
    looks = list(looks)
    if matcher.rotation_invariant:
        return looks
    shelf = FeatureStore(matcher, work)
    groups = _groups(len(looks), verified, same)
    joined = set(groups[0])
    for group in groups[1:]:
        turns = _turns_of(group, joined, looks, pairs, verified, matcher, shelf, work, seed)
        if turns:
            for index in group:
                looks[index] = extract_rotated(looks[index], turns, matcher, work)
            joined |= set(group)
    return looks


def _groups(count: int, verified: VerifiedPairs, same: Mapping[int, int]) -> list[list[int]]:
    """Photos that hang together, copies left out, the largest group first."""
    edges = np.array(list(verified.geometry), dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    total, label = connected_components(graph, directed=False)
    groups = [[int(i) for i in np.flatnonzero(label == group) if int(i) not in same] for group in range(total)]
    return sorted((group for group in groups if group), key=lambda group: (-len(group), group[0]))


def _turns_of(
    group: Sequence[int],
    joined: set[int],
    looks: Sequence[ImageFeatures],
    pairs: Pairs,
    verified: VerifiedPairs,
    matcher: CacheableMatcher,
    shelf: FeatureStore,
    work: WorkFolder,
    seed: int,
) -> int:
    """The quarter turns (1 to 3) after which photos of the group verify with `joined` ones; 0 for none."""
    partners: dict[int, list[int]] = {}
    for i, j in pairs:
        for own, other in ((i, j), (j, i)):
            if own in group and other in joined:
                partners.setdefault(own, []).append(other)
    for own in sorted(partners, key=lambda index: (-len(partners[index]), index))[:PHOTOS_A_GROUP]:
        others = sorted(partners[own], key=lambda other: -_matches(verified, own, other))[:PARTNERS]
        found = np.zeros(QUARTER_TURNS, dtype=int)
        for turns in range(1, QUARTER_TURNS):
            turned = shelf.take(extract_rotated(looks[own], turns, matcher, work))
            for other in others:
                matches = replace(matcher.match_features(shelf.take(looks[other]), turned), tries=QUARTER_TURNS)
                sizes = [(look.facts.width, look.facts.height) for look in (looks[other], looks[own])]
                inliers, chance = verify_epipolar(matches, *sizes, seed)
                found[turns] += inliers if chance <= MAX_LOG10_NFA_VERIFIED else 0
        if found.any():
            return int(found.argmax())
    return 0


def _matches(verified: VerifiedPairs, one: int, two: int) -> int:
    return verified.counts.get((min(one, two), max(one, two)), (0, 0))[0]
