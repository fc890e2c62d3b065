"""Look-alikes: verified pairs of photos that a model of the scene contradicts, and which side is wrong.

Two fronts of a house that are equal, or a floor that repeats, give verified pairs whose motion is false. A model has a
place for each photo, so that every verified pair either agrees with it or not. Where some do not, the model or these
pairs are wrong. Which, is decided by cuts of the graph of photos: to believe a contradicting pair, all pairs that tie
its photos to each other in another way must be given up. A pair counts by its inliers, and less where points are
missing that a photo should see while it sees others in their place (C. Zach, A. Irschara and H. Bischof, "What can
missing correspondences tell us about 3D structure and motion?", CVPR 2008; J. Heinly et al., "Correcting for duplicate
scene structure in sparse 3D reconstruction", ECCV 2014).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csgraph, csr_matrix

from dune_cli.geometry import two_view
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.epipolar import fundamental_error_px, fundamental_inliers, sampson_error_px
from dune_cli.geometry.poses import inverse, transform_points, vector_angle
from dune_cli.geometry.view_graph import components
from dune_cli.sfm.cameras import PhotoCameras
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.relative_pose import MIN_CONFIDENCE
from dune_cli.sfm.scene import SfmModel
from dune_cli.sfm.verification import MIN_INLIERS, THRESHOLD_PX, VerifiedPairs

Pair = tuple[int, int]
MAX_ERROR_PX = 4.0  # of an inlier from the model's epipolar line, in matched pixels
# of a pair's inliers; of 20 and 46 photos of two sets with known poses the least share is 0.99 and 0.93, of false
# pairs the most is 0.1
AGREES = 0.5
CELLS = 10  # along the long side of a photo, in which points are found or missing
NEAR, NEAR_RATIO = np.radians(60.0), 1.6  # angle and ratio of distances at which two photos see a point alike
A_CELL = 2  # points that are not there by chance
PENALTY = 8  # power of the share of cells, below which a pair counts less
MOST_INLIERS = 300  # that count, of a pair
TRIED, ROUNDS = 12, 4
# photos whose best partner is this near in their order, and the share of them from which on it is that of a walk; then
# a pair that follows each other weighs more than all others (R. Roberts et al., "Structure from motion for scenes with
# large duplicate structures", CVPR 2011)
NEAR_IN_ORDER, WALK, LEAST_WALK = 2, 0.6, 8
IN_ORDER = 100.0 * MOST_INLIERS
FEW_INLIERS = 2 * MIN_INLIERS  # of a pair that is neither believed for its order nor as the only tie of a photo

MOTION_PAIRS = 16  # that are tested for a second motion
MIN_SECOND, MAX_LOG10_NFA_SECOND = 20, -8.0  # its inliers, and how little chance explains them
APART = 3.0  # thresholds from the first motion, from which on a match does not belong to it


@dataclass(frozen=True)
class Judge:
    """The verified pairs beside one model of the photos."""

    model: SfmModel
    correspondences: Correspondences
    verified: VerifiedPairs
    cameras: PhotoCameras

    @cached_property
    def agreement(self) -> dict[Pair, float]:
        """Verified pairs of two placed photos -> the share of their inliers that lie at the model's epipolar lines."""
        return {pair: self._agreement(pair) for pair in self.verified.geometry if self._placed.issuperset(pair)}

    @property
    def contradicted(self) -> list[Pair]:
        """The pairs that the model contradicts."""
        return [pair for pair, share in self.agreement.items() if share < AGREES]

    def share(self, pairs: Collection[Pair]) -> float:
        """The share of the inliers of all pairs of placed photos that these have."""
        inliers = {pair: self.verified.counts[pair][1] for pair in self.agreement}
        return sum(inliers.get(pair, 0) for pair in pairs) / max(sum(inliers.values()), 1)

    @cached_property
    def weights(self) -> dict[Pair, float]:
        """Of each pair of placed photos: its inliers, less where points are missing, beside the median pair."""
        inliers = {pair: min(self.verified.counts[pair][1], MOST_INLIERS) for pair in self.agreement}
        found = {pair: self._found_share(pair) for pair, share in self.agreement.items() if share >= AGREES}
        shares = {pair: share for pair, share in found.items() if share is not None}
        usual = float(np.median(list(shares.values()))) if shares else 1.0
        weights = {pair: n * min(1.0, shares.get(pair, usual) / usual) ** PENALTY for pair, n in inliers.items()}
        return weights | dict.fromkeys(self._in_order & weights.keys(), IN_ORDER)

    @cached_property
    def _in_order(self) -> set[Pair]:
        """The verified pairs of photos that follow each other, where the order of the photos is that of a walk: where
        most have the most inliers with a photo that is near in it."""
        partners = self.verified.inliers_by_photo()
        steps = [abs(max(inliers, key=inliers.__getitem__) - photo) for photo, inliers in partners.items()]
        near = sum(step <= NEAR_IN_ORDER for step in steps)
        if near < WALK * len(steps) or len(steps) < LEAST_WALK:
            return set()
        counts = self.verified.counts
        return {(i, j) for i, j in self.verified.geometry if j == i + 1 and counts[i, j][1] >= FEW_INLIERS}

    def doubtful(self) -> set[Pair]:
        """The pairs that agree with the model, but are to be given up for heavier ones that contradict it."""
        kept = {pair for pair, share in self.agreement.items() if share >= AGREES}
        against = set(self.contradicted)
        removed: set[Pair] = set()
        for _ in range(ROUNDS):
            tried = sorted(against, key=lambda pair: (-self.weights[pair], pair))[:TRIED]
            best: tuple[float, set[Pair], set[Pair]] = 0.0, set(), set()
            for pair in tried:
                side = self._least_cut(pair, kept)
                cut, believed = ({p for p in pairs if (p[0] in side) != (p[1] in side)} for pairs in (kept, against))
                gain = sum(map(self.weights.__getitem__, believed)) - sum(map(self.weights.__getitem__, cut))
                if gain > best[0]:
                    best = gain, cut, believed
            if not best[2]:
                break
            removed |= best[1]
            kept = (kept - best[1]) | best[2]
            against -= best[2]
        return removed

    def weak_bridges(self) -> set[Pair]:
        """The pairs without which the placed photos fall apart, and which have few inliers and little confidence."""
        counts, confidence = self.verified.counts, self.verified.confidence
        pairs = [pair for pair in self.agreement if pair not in self.contradicted]
        few = [pair for pair in pairs if counts[pair][1] < FEW_INLIERS and confidence.get(pair, 1.0) < MIN_CONFIDENCE]
        parts = self._parts(pairs)
        return {pair for pair in few if self._parts([other for other in pairs if other != pair]) > parts}

    def _parts(self, pairs: Collection[Pair]) -> int:
        """The number of parts that photos fall into, which only these pairs tie."""
        return len(components(len(self.cameras.ids), np.array(sorted(pairs), np.int64).reshape(-1, 2)))

    @property
    def _placed(self) -> set[int]:
        return set(self.model.world_from_cam)

    def camera(self, photo: int) -> Camera:
        """The model's camera of a photo."""
        return self.model.cameras[self.cameras.ids[photo]]

    @cached_property
    def _undistorted(self) -> dict[int, np.ndarray]:
        """Photo -> its keypoints in a pinhole camera: those that agree with another photo; the others are NaN."""
        found = {}
        for photo, rows in self._matched.items():
            keypoints = self.correspondences.keypoints[photo]
            found[photo] = np.full(keypoints.shape, np.nan)
            found[photo][rows] = self.camera(photo).undistort(keypoints[rows])
        return found

    def undistorted(self, pair: Pair, matches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pixels (M, 2) in both photos of matches (K, 2) of their keypoints, in pinhole cameras; those that have
        a ray there."""
        pixels = self.correspondences.pixels(pair, matches)
        return _with_rays(*(self.camera(photo).undistort(points) for photo, points in zip(pair, pixels)))

    def _agreement(self, pair: Pair) -> float:
        rows = self._inliers(pair)
        pixels = _with_rays(*(self._undistorted[photo][rows[:, side]] for side, photo in enumerate(pair)))
        first, second = (self.model.world_from_cam[photo] for photo in pair)
        K1, K2 = (self.camera(photo).K for photo in pair)
        errors = sampson_error_px(*pixels, K1, K2, inverse(second) @ first)
        near = errors < MAX_ERROR_PX * self.correspondences.pixel_size
        return float(near.mean()) if len(near) else 1.0

    def _inliers(self, pair: Pair) -> np.ndarray:
        """(M, 2) keypoints."""
        return np.asarray(self.verified.geometry[pair].inlier_matches)

    def _least_cut(self, pair: Pair, kept: set[Pair]) -> set[int]:
        """The photos on the first one's side of the least cut of the pairs `kept` between the two photos of a pair."""
        count = len(self.cameras.ids)
        pairs = np.array(sorted(kept), dtype=np.int64).reshape(-1, 2)
        weights = np.array([max(1, round(self.weights[i, j])) for i, j in pairs.tolist()], dtype=np.int32)
        rows, columns = np.concatenate([pairs, pairs[:, ::-1]]).T
        capacity = csr_matrix((np.tile(weights, 2), (rows, columns)), (count, count))
        flow = csgraph.maximum_flow(capacity, *pair).flow
        left = capacity - flow
        left.eliminate_zeros()
        return set(csgraph.breadth_first_order(left, pair[0], return_predecessors=False).tolist())

    # Missing correspondences

    @cached_property
    def _seen(self) -> dict[int, np.ndarray]:
        """Photo -> the points that it sees."""
        return {photo: np.unique(points) for photo, (points, _) in self.model.observations.items()}

    @cached_property
    def _matched(self) -> dict[int, np.ndarray]:
        """Photo -> its keypoints that agree with another photo."""
        found: dict[int, list[np.ndarray]] = {photo: [] for photo in self._placed}
        for pair in self.verified.geometry:
            for side, photo in enumerate(pair):
                if photo in found:
                    found[photo].append(self._inliers(pair)[:, side])
        return {photo: np.unique(np.concatenate([np.zeros(0, np.int64), *rows])) for photo, rows in found.items()}

    @cached_property
    def _point_of(self) -> dict[int, np.ndarray]:
        """Photo -> the point of each of its keypoints, -1 for none."""
        found = {}
        for photo, (points, keypoints) in self.model.observations.items():
            found[photo] = np.full(len(self.correspondences.keypoints[photo]), -1)
            found[photo][keypoints] = points
        return found

    def _found_share(self, pair: Pair) -> float | None:
        """Of the cells of two photos where both see points: the share in which they see some in common.

        A cell of one photo counts against a pair where points of the other photo should be, and it matches points there
        with other photos instead. None where the photos see what they have in common from too different places.
        """
        if not self._point_of.keys() >= set(pair):
            return None
        common = np.intersect1d(*(self._seen[photo] for photo in pair), assume_unique=True)
        if len(common) == 0 or 2 * np.count_nonzero(self._is_alike(common, pair)) < len(common):
            return None
        found, missing = np.sum([self._cells(pair, side, common) for side in (0, 1)], axis=0)
        return float((found + 1) / (found + missing + 1))

    def _is_alike(self, points: np.ndarray, pair: Pair) -> np.ndarray:
        """(M,) bool: the points that both photos would see alike."""
        rays = [self.model.points_world[points] - self.model.world_from_cam[photo][:3, 3] for photo in pair]
        ratio = np.linalg.norm(rays[0], axis=1) / np.linalg.norm(rays[1], axis=1)
        return (vector_angle(*rays) < NEAR) & (np.abs(np.log(ratio)) < np.log(NEAR_RATIO))

    def _cells(self, pair: Pair, side: int, common: np.ndarray) -> tuple[int, int]:
        """How many cells of one photo of a pair have common points, and how many have others where the other photo's
        should be."""
        photo, other = pair[side], pair[1 - side]
        camera, keypoints = self.camera(photo), self._matched[photo]
        size = max(camera.width, camera.height) / CELLS

        def cell(pixels: np.ndarray) -> np.ndarray:
            x, y = np.floor(pixels / size).astype(np.int64).T
            return x + (CELLS + 1) * y

        alone = np.setdiff1d(self._seen[other], self._seen[photo], assume_unique=True)
        alone = alone[self._is_alike(alone, pair)]
        points = transform_points(inverse(self.model.world_from_cam[photo]), self.model.points_world[alone])
        pixels = camera.project(points[points[:, 2] > 0])
        inside = np.isfinite(pixels).all(1) & ((pixels >= 0) & (pixels < (camera.width, camera.height))).all(1)
        cells = cell(self.correspondences.keypoints[photo][keypoints])
        inliers = self._inliers(pair)[:, side]
        shared = np.isin(self._point_of[photo][keypoints], common) | np.isin(keypoints, inliers)
        found = np.unique(cells[shared])
        missing = np.intersect1d(_occupied(cell(pixels[inside])), _occupied(cells[~shared]))
        return len(found), len(np.setdiff1d(missing, found))


def _with_rays(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pixels (M, 2) of matches that are finite in both photos."""
    seen = np.isfinite(first).all(1) & np.isfinite(second).all(1)
    return first[seen], second[seen]


def _occupied(cells: np.ndarray) -> np.ndarray:
    numbers, counts = np.unique(cells, return_counts=True)
    return numbers[counts >= A_CELL]


# Two motions


def pairs_with_two_motions(judge: Judge) -> tuple[int, int]:
    """How many pairs of placed photos show a second motion of the camera in the matches that the first one leaves, and
    how many were tested: those with the most such matches."""
    counts = judge.verified.counts
    left = {pair: counts[pair][0] - counts[pair][1] for pair in judge.agreement}
    tested = sorted(left, key=lambda pair: (-left[pair], pair))[:MOTION_PAIRS]
    return sum(left[pair] >= MIN_SECOND and _has_second_motion(judge, pair) for pair in tested), len(tested)


def _has_second_motion(judge: Judge, pair: Pair) -> bool:
    correspondences = judge.correspondences
    threshold_px = THRESHOLD_PX * correspondences.pixel_size
    agreeing = np.asarray(judge.verified.geometry[pair].inlier_matches)
    F, _ = fundamental_inliers(*judge.undistorted(pair, agreeing), threshold_px)
    all_pixels = judge.undistorted(pair, correspondences.matches[pair])
    if F is None:
        return False
    left = fundamental_error_px(*all_pixels, F) > APART * threshold_px
    pixels = [points[left] for points in all_pixels]
    second = int(np.count_nonzero(fundamental_inliers(*pixels, threshold_px)[1]))
    sizes = [(camera.width, camera.height) for camera in map(judge.camera, pair)]
    chance = two_view.log10_nfa_epipolar(second, len(pixels[0]), (threshold_px, threshold_px), sizes)
    return second >= MIN_SECOND and bool(chance < MAX_LOG10_NFA_SECOND)
