"""Geometric verification of matched pairs: two-view geometries, and photos rotated by quarters.

Photos go by their index. Thresholds are in units of `Correspondences.pixel_size`, pixels of a photo per matched pixel.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from dune_cli import console, optional, runtime
from dune_cli.geometry import epipolar, two_view, view_graph
from dune_cli.geometry.cameras import HALF_PIXEL
from dune_cli.geometry.pose_confidence import MatchedPixels, confidence_from_evidence, two_view_evidence
from dune_cli.io.cache import WorkFolder
from dune_cli.matchers.filtering import (
    MAX_LOG10_NFA_VERIFIED,
    QUARTER_TURNS,
    LazyThumbnail,
    Thumbnail,
    non_static_matches,
    verify_epipolar,
)
from dune_cli.matchers.matcher import CacheableMatcher
from dune_cli.sfm.cameras import PhotoCameras, SharedCamera
from dune_cli.sfm.features import FeatureStore, ImageFeatures, extract_rotated
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.pairs import Pairs
from dune_cli.sfm.scene import ImagePair

MIN_INLIERS = 15
MAX_LOG10_NFA = -4.0
THRESHOLD_PX = 2.0  # half of COLMAP's own: cameras of three real sets came out up to twice as accurate


@dataclass(frozen=True)
class VerifiedPairs:
    """The verified pairs of photos.

    `geometry`: pycolmap's two-view geometry of each verified pair. `counts`: the matches and inliers of every matched
    pair. `pure_rotations`: verified pairs that are not in `geometry`, because their connected component shows no
    parallax. `static_matches`: how many matches of a pair were left out because they lie at the same pixels of both
    photos. `confidence`: the pose confidence of each pair in `geometry`. `links`: pairs of photos that a rig fixes to
    each other, which connect without matches. `contradicting`: verified pairs that are not in `geometry`, because the
    scene contradicts them.
    """

    geometry: dict[tuple[int, int], Any]
    counts: dict[tuple[int, int], tuple[int, int]]
    pure_rotations: frozenset[tuple[int, int]] = frozenset()
    static_matches: Mapping[tuple[int, int], int] = field(default_factory=dict)
    confidence: Mapping[tuple[int, int], float] = field(default_factory=dict)
    links: tuple[tuple[int, int], ...] = ()
    contradicting: frozenset[tuple[int, int]] = frozenset()

    def pairs(self) -> list[ImagePair]:
        """All matched pairs."""
        return [
            ImagePair(pair, *counts, self.confidence.get(pair, 0.0), pair in self.contradicting)
            for pair, counts in self.counts.items()
        ]

    def without(self, pairs: Set[tuple[int, int]]) -> VerifiedPairs:
        """Without the `geometry` of these pairs."""
        return replace(self, geometry={pair: found for pair, found in self.geometry.items() if pair not in pairs})

    def joined(self, other: VerifiedPairs) -> VerifiedPairs:
        """With the pairs of `other`; of those in both, its own only where `other` did not verify them."""
        return VerifiedPairs(
            {**self.geometry, **other.geometry},
            {
                **self.counts,
                **{pair: c for pair, c in other.counts.items() if pair in other.geometry or pair not in self.geometry},
            },
            self.pure_rotations | other.pure_rotations,
            {**self.static_matches, **other.static_matches},
            ChainMap(dict[tuple[int, int], float](), other.confidence, self.confidence),  # waits for none
            self.links or other.links,
        )

    def inliers_by_photo(self) -> dict[int, dict[int, int]]:
        """Photo -> the others that it has a verified pair with -> the inliers of that pair."""
        found: dict[int, dict[int, int]] = {}
        for i, j in sorted(self.geometry):
            inliers = self.counts[i, j][1]
            found.setdefault(i, {})[j] = found.setdefault(j, {})[i] = inliers
        return found

    def components(self, count: int) -> list[list[int]]:
        """The connected components of `count` photos, largest first."""
        edges = np.array([*self.geometry, *self.links], dtype=np.int64).reshape(-1, 2)
        return [component.tolist() for component in view_graph.components(count, edges)]


def verify_pairs(
    correspondences: Correspondences, cameras: PhotoCameras, seed: int, thumbnail_of: Callable[[int], Thumbnail]
) -> VerifiedPairs:
    """COLMAP's two-view geometry (calibrated, uncalibrated, planar or panoramic) of each pair, estimated on the inliers
    of a MAGSAC fundamental matrix. A pair that chance explains has none (a-contrario test). The confidences are
    computed by another thread while the mapper works, which does not need them.

    Static matches (a caption on all photos) are left out; `thumbnail_of` gives the thumbnails of photos with such
    matches.
    """
    pycolmap = quiet_pycolmap()
    pixel_size = correspondences.pixel_size
    threshold_px = THRESHOLD_PX * pixel_size
    options = pycolmap.TwoViewGeometryOptions()
    options.min_num_inliers = MIN_INLIERS
    options.ransac.random_seed = seed
    options.ransac.max_error = threshold_px
    colmap_cameras = [camera.to_colmap() for camera in cameras.shared]

    def verify(item: tuple[tuple[int, int], np.ndarray]) -> _VerifiedPair:
        (i, j), matches = item
        if len(matches) < MIN_INLIERS:
            return _VerifiedPair((i, j), len(matches), 0)
        camera1, camera2 = cameras.of(i), cameras.of(j)
        sizes = (camera1.width, camera1.height), (camera2.width, camera2.height)
        photos = (LazyThumbnail(size, partial(thumbnail_of, index)) for size, index in zip(sizes, (i, j)))
        pixels = correspondences.pixels((i, j))
        keep = non_static_matches(*pixels, (pixel_size, pixel_size), *photos, seed)
        static = int(np.count_nonzero(~keep))
        matches = matches[keep]
        points1, points2 = (correspondences.keypoints[index] + HALF_PIXEL for index in (i, j))
        agree = _agree(correspondences.pixels((i, j), matches), camera1, camera2, threshold_px, seed)
        estimate = pycolmap.estimate_two_view_geometry(
            colmap_cameras[cameras.ids[i]],
            points1,
            colmap_cameras[cameras.ids[j]],
            points2,
            matches[agree],
            options,
        )
        inliers = len(estimate.inlier_matches)
        log10_nfa = two_view.log10_nfa_epipolar(inliers, len(matches), (threshold_px, threshold_px), sizes)
        if inliers < MIN_INLIERS or log10_nfa > MAX_LOG10_NFA:
            return _VerifiedPair((i, j), len(matches), inliers, static)

        def confidence() -> float:
            agree = np.isin(matches[:, 0], np.asarray(estimate.inlier_matches)[:, 0])
            return _confidence(*correspondences.pixels((i, j), matches), agree, camera1, camera2, pixel_size, seed)

        return _VerifiedPair((i, j), len(matches), inliers, static, estimate, confidence)

    pairs = correspondences.matches
    found = list(console.progress(runtime.ordered_map(verify, pairs.items()), "verifying", len(pairs), "pair"))
    good = [pair for pair in found if pair.geometry is not None]
    return VerifiedPairs(
        {pair.photos: pair.geometry for pair in good},
        {pair.photos: (pair.matches, pair.inliers) for pair in found},
        static_matches={pair.photos: pair.static_matches for pair in found if pair.static_matches},
        confidence=runtime.LaterValues({pair.photos: pair.confidence for pair in good}),
        links=tuple(cameras.rigs.links()),
    )


@dataclass(frozen=True)
class _VerifiedPair:
    """One matched pair. `geometry`: pycolmap's two-view geometry; None where the pair is not verified. `confidence`
    computes that of the pose."""

    photos: tuple[int, int]
    matches: int
    inliers: int
    static_matches: int = 0
    geometry: Any = None
    confidence: Callable[[], float] = float


def _agree(
    pixels: tuple[np.ndarray, np.ndarray],
    camera1: SharedCamera,
    camera2: SharedCamera,
    threshold_px: float,
    seed: int,
) -> np.ndarray:
    """(M,) bool: the matches that agree with a fundamental matrix of the undistorted photos, by MAGSAC.

    It takes milliseconds; pycolmap's RANSAC stops early only where most matches are right, and else takes seconds. The
    threshold grows as much as undistortion stretches the pixels, in the median.
    """
    undistorted = [camera.undistort(points) for camera, points in zip((camera1, camera2), pixels)]
    seen = np.isfinite(np.concatenate(undistorted, axis=1)).all(-1)
    agree = np.zeros(len(seen), dtype=bool)
    if np.count_nonzero(seen) < MIN_INLIERS:
        return agree
    stretch = max(
        float(np.nanmedian(camera.camera.undistorted_pixel_size(points[seen])))
        for camera, points in zip((camera1, camera2), pixels)
    )
    points1, points2 = (points[seen] + HALF_PIXEL for points in undistorted)
    _, agree[seen] = epipolar.fundamental_inliers(points1, points2, threshold_px * max(stretch, 1.0), seed)
    return agree


def _confidence(
    pixels1: np.ndarray,
    pixels2: np.ndarray,
    inliers: np.ndarray,
    camera1: SharedCamera,
    camera2: SharedCamera,
    pixel_size: float,
    seed: int,
) -> float:
    """The pose confidence of a pair with the verified `inliers` (M,) bool."""
    K1, K2, threshold_px = camera1.K, camera2.K, THRESHOLD_PX * pixel_size
    pixels1, pixels2 = camera1.undistort(pixels1), camera2.undistort(pixels2)
    seen = np.isfinite(np.concatenate([pixels1, pixels2], axis=1)).all(-1)
    pixels1, pixels2, inliers = pixels1[seen], pixels2[seen], inliers[seen]
    runs = [
        epipolar.estimate_relative_pose(pixels1[inliers], pixels2[inliers], K1, K2, threshold_px, run_seed)
        for run_seed in (seed, seed + 1)
    ]
    poses = [epipolar.RelativePose(run.cam2_from_cam1, inliers) for run in runs if run is not None]
    if not poses:
        return 0.0
    sizes = (camera1.width, camera1.height), (camera2.width, camera2.height)
    focal_known = all(camera.fixed or camera.prior for camera in (camera1, camera2))
    matches = MatchedPixels(pixels1, pixels2, sizes, (threshold_px, threshold_px), focal_known=focal_known)
    return confidence_from_evidence(two_view_evidence(matches, K1, K2, poses[0], poses[1:], seed))


def quiet_pycolmap() -> Any:
    """pycolmap with its logging silenced below fatal errors."""
    pycolmap = optional.import_pycolmap("structure from motion")
    pycolmap.logging.minloglevel = max(pycolmap.logging.minloglevel, 3)
    return pycolmap


# Photos rotated by quarters: components that verify with nothing are matched again after quarter turns, where the
# matcher takes upright photos only.


PHOTOS_PER_COMPONENT, PARTNERS_PER_PHOTO = 2, 3  # that are tried


def rotate_disconnected_components(
    images: Sequence[ImageFeatures],
    pairs: Pairs,
    verified: VerifiedPairs,
    same: Mapping[int, int],
    matcher: CacheableMatcher,
    cache: WorkFolder,
    seed: int,
) -> list[ImageFeatures]:
    """The photos' features. Components that connect to the largest one only after quarter turns have theirs extracted
    from the rotated photos (`ImageFeatures.quarter_turns`), all photos of a component alike. `same`: photos that are
    copies -> of which one."""
    images = list(images)
    if matcher.rotation_invariant:
        return images
    store = FeatureStore(matcher, cache)
    groups = [[index for index in group if index not in same] for group in verified.components(len(images))]
    groups = sorted((group for group in groups if group), key=lambda group: (-len(group), group[0]))
    connected = set(groups[0])
    for group in groups[1:]:
        candidates = _candidate_pairs(group, connected, pairs, verified)
        turns = _best_quarter_turns(candidates, images, matcher, store, cache, seed)
        if turns:
            for index in group:
                images[index] = extract_rotated(images[index], turns, matcher, cache)
            connected |= set(group)
    return images


def _candidate_pairs(
    group: Sequence[int], connected: set[int], pairs: Pairs, verified: VerifiedPairs
) -> list[tuple[int, list[int]]]:
    """The photos of the group with most selected partners among the `connected` ones, each with the partners that it
    has most matches with."""

    def match_count(i: int, j: int) -> int:
        return verified.counts.get((min(i, j), max(i, j)), (0, 0))[0]

    partners: dict[int, list[int]] = {}
    for i, j in pairs:
        for own, other in ((i, j), (j, i)):
            if own in group and other in connected:
                partners.setdefault(own, []).append(other)
    photos = sorted(partners, key=lambda index: (-len(partners[index]), index))[:PHOTOS_PER_COMPONENT]
    return [
        (own, sorted(partners[own], key=lambda other: -match_count(own, other))[:PARTNERS_PER_PHOTO]) for own in photos
    ]


def _best_quarter_turns(
    candidates: Sequence[tuple[int, list[int]]],
    images: Sequence[ImageFeatures],
    matcher: CacheableMatcher,
    store: FeatureStore,
    cache: WorkFolder,
    seed: int,
) -> int:
    """The quarter turns (1 to 3) of the first photo of `candidates` that verifies with its partners; 0 for none."""
    for own, others in candidates:
        inliers = np.zeros(QUARTER_TURNS, dtype=int)
        for turns in range(1, QUARTER_TURNS):
            rotated = store.load(extract_rotated(images[own], turns, matcher, cache))
            for other in others:
                matches = replace(matcher.match_features(store.load(images[other]), rotated), tries=QUARTER_TURNS)
                sizes = [(image.info.width, image.info.height) for image in (images[other], images[own])]
                count, log10_nfa = verify_epipolar(matches, *sizes, seed)
                inliers[turns] += count if log10_nfa <= MAX_LOG10_NFA_VERIFIED else 0
        if inliers.any():
            return int(inliers.argmax())
    return 0
