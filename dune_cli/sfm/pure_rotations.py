"""Photos whose camera only rotated: they show no parallax, so none of their points has a position.

Photos go by their index. Thresholds are in units of `Correspondences.pixel_size`, pixels of a photo per matched pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix, csgraph

from dune_cli.geometry import two_view
from dune_cli.sfm.cameras import PhotoCameras, SharedCamera
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.verification import VerifiedPairs

# Pairs of a component that are tested: a few of all strengths, which are enough where half of them show parallax; then
# those with the fewest inliers, which have the widest baselines, and those that hold the component together.
FIRST_PAIRS, WEAKEST_PAIRS = 8, 40
MATCHES_PER_PAIR = 200
UNEXPLAINED_PX = 3.0  # distance from where a rotation puts a match
# Share of a pair's matches that no rotation explains, from which on they count as parallax. Eight panoramas of
# amateurs, lens distortion included, have at most 0.20 in their worst pair; pairs of ten scenes 0.3 to 1.
PARALLAX_SHARE = 0.25
ROTATION_SHARE = 0.05  # below it the pair shows a rotation only
CONTRADICTED_PX = 6.0  # of parallax per rotation between two photos, twice of what may hide in each
EXIF_FACTORS = np.geomspace(0.85, 1.18, 9)  # by which a focal length from EXIF may be wrong
# At most so many pairs with parallax and matches that no rotation explains: the camera hardly moved. Four panoramas
# taken by hand have .10 to .23 and .05 to .13; of the scenes of 70 sets two have less than .37 and .18.
FEW_PAIRS, FEW_MATCHES = 0.3, 0.15
ITERATIONS = 20
# The lens of an unknown camera is chosen on fewer matches. Its distortion is tried on a coarse grid, with every third
# focal length, then on two finer ones about the best.
LENS_MATCHES, LENS_ITERATIONS = 60, 8
DIVISIONS = np.array([-0.45, -0.35, -0.25, -0.15, -0.08, 0.08, 0.16])  # at the corner of the photo
COARSE_FACTORS = 3
COARSE_MEDIAN_PX = 6.0  # of residuals, from which on no rotation is behind them
FINER_DIVISIONS = (np.linspace(-0.04, 0.04, 5), np.linspace(-0.01, 0.01, 3))


@dataclass(frozen=True)
class PureRotations:
    """The verified `pairs` of connected components whose camera only rotated. `explained`: how many of the `matches` of
    the tested pairs a rotation explains."""

    pairs: frozenset[tuple[int, int]] = frozenset()
    matches: int = 0
    explained: int = 0

    def joined(self, other: PureRotations) -> PureRotations:
        """With those of other components."""
        matches, explained = self.matches + other.matches, self.explained + other.explained
        return PureRotations(self.pairs | other.pairs, matches, explained)


def find_pure_rotations(
    correspondences: Correspondences, verified: VerifiedPairs, cameras: PhotoCameras
) -> tuple[PureRotations, PureRotations]:
    """The connected components without any parallax; and others with so little that they may have no scene, either: a
    rotation explains nearly all matches of most pairs.

    A pair that a rotation explains does no harm among others (two frames of a video, a panorama with one step to the
    side). A component without any other pair has no scene. Of photos with one camera, the focal length and the
    distortion that explain most are taken where they are unknown.
    """
    none = little = PureRotations()
    components = verified.components(len(cameras.ids))
    component_of = {index: number for number, component in enumerate(components) for index in component}
    groups: dict[int, list[tuple[int, int]]] = {}
    for pair in sorted(verified.geometry):
        groups.setdefault(component_of[pair[0]], []).append(pair)
    for pairs in groups.values():
        pairs.sort(key=lambda pair: (verified.counts[pair][1], pair))
        of_none, of_little = _TestedPairs(correspondences, verified, cameras, pairs).without_parallax()
        none, little = none.joined(of_none), little.joined(of_little)
    return none, little


@dataclass(frozen=True)
class _Lens:
    """An estimate: the `factor` on the focal length, and the `division` of distances from the centre of a photo, less
    one, at its corner (A. Fitzgibbon, "Simultaneous linear estimation of multiple view geometry and lens distortion",
    CVPR 2001). `factor` None: that which suits a pair best."""

    factor: float | None
    division: float = 0.0


@dataclass(frozen=True)
class _TestedPairs:
    """The `pairs` of a connected component, those with the fewest inliers first."""

    correspondences: Correspondences
    verified: VerifiedPairs
    cameras: PhotoCameras
    pairs: Sequence[tuple[int, int]]

    def without_parallax(self) -> tuple[PureRotations, PureRotations]:
        """As `find_pure_rotations`."""
        first = [self.pairs[row] for row in _spread(len(self.pairs), FIRST_PAIRS)]
        camera = self._only_camera()
        if camera is None:
            return self._judged(first, _Lens(None))
        factors = _focal_factors(camera, camera)
        costs = self._costs(first, factors, np.zeros(1))[0]
        none, little = self._judged(first, _Lens(float(factors[costs.argmin()])))
        distorted = None if none.pairs or camera.lens_known else self._distorted(first, factors)
        return (none, little) if distorted is None else (self._judged(first, distorted)[0], little)

    def _only_camera(self) -> SharedCamera | None:
        ids = {self.cameras.ids[index] for pair in self.pairs for index in pair}
        return self.cameras.shared[ids.pop()] if len(ids) == 1 else None

    def _distorted(self, pairs: Sequence[tuple[int, int]], factors: np.ndarray) -> _Lens | None:
        """The lens with distortion that suits the pairs best; None where they are no rotations with it by far."""
        factors, divisions = factors[::COARSE_FACTORS], DIVISIONS
        step = 1.0 if len(factors) == 1 else float(factors[1] / factors[0])
        costs = self._costs(pairs, factors, divisions)
        if costs.min() > len(pairs) * np.log(COARSE_MEDIAN_PX * self.correspondences.pixel_size):
            return None
        for finer in FINER_DIVISIONS:
            row, column = np.unravel_index(costs.argmin(), costs.shape)
            step **= 0.5
            factors = factors[column] * np.unique(np.geomspace(1 / step, step, len(finer)))
            divisions = divisions[row] + finer
            costs = self._costs(pairs, factors, divisions)
        row, column = np.unravel_index(costs.argmin(), costs.shape)
        return _Lens(float(factors[column]), float(divisions[row]))

    def _costs(self, pairs: Sequence[tuple[int, int]], factors: np.ndarray, divisions: np.ndarray) -> np.ndarray:
        """(D, F) of each division and factor on the focal lengths: the sum of the logarithms of the pairs' median
        residuals."""
        residuals = (self._residuals(pair, factors, divisions, LENS_MATCHES, LENS_ITERATIONS) for pair in pairs)
        medians = [np.median(by_lens, axis=-1) for by_lens in residuals]
        return np.log(np.maximum(medians, 0.25 * self.correspondences.pixel_size)).sum(0)

    def _residuals(
        self,
        pair: tuple[int, int],
        factors: np.ndarray,
        divisions: np.ndarray,
        matches: int = MATCHES_PER_PAIR,
        iterations: int = ITERATIONS,
    ) -> np.ndarray:
        """(D, F, M) distances in pixels of (a sample of) the inliers from where the best rotation puts them."""
        rows = np.asarray(self.verified.geometry[pair].inlier_matches)
        rows = rows[:: max(1, len(rows) // matches)]
        cameras = [self.cameras.of(index) for index in pair]
        both = zip(cameras, self.correspondences.pixels(pair, rows))
        pixels = [camera.undistort(points) for camera, points in both]
        seen = np.isfinite(np.concatenate(pixels, axis=1)).all(-1)
        points1, points2 = (_divided(points[seen], camera, divisions) for camera, points in zip(cameras, pixels))
        return two_view.rotation_only_by_focal(points1, points2, cameras[0].K, cameras[1].K, factors, iterations)

    def _pair_residuals(self, pair: tuple[int, int], lens: _Lens) -> np.ndarray:
        """(M,) of a pair, in units of matched pixels."""
        unit = self.correspondences.pixel_size
        if lens.factor is not None:
            return self._residuals(pair, np.array([lens.factor]), np.array([lens.division]))[0, 0] / unit
        factors = _focal_factors(*(self.cameras.of(index) for index in pair))
        by_factor = self._residuals(pair, factors, np.zeros(1))[0]
        return by_factor[np.median(by_factor, axis=1).argmin()] / unit

    def _judged(self, first: Sequence[tuple[int, int]], lens: _Lens) -> tuple[PureRotations, PureRotations]:
        """As `find_pure_rotations`, with this lens. The other pairs are tested where half of the `first` ones show no
        parallax."""
        residuals = {pair: self._pair_residuals(pair, lens) for pair in first}
        if 2 * sum(map(_has_parallax, residuals.values())) >= len(first) and len(self.pairs) > len(first):
            return PureRotations(), PureRotations()
        for pair in {*self.pairs[:WEAKEST_PAIRS], *self._strongest_tree()} - set(first):
            residuals[pair] = self._pair_residuals(pair, lens)
        contradicted = _contradicted(residuals)
        kept = [r for pair, r in residuals.items() if pair not in contradicted]
        shown, tested = sum(map(_has_parallax, kept)), self._joined(kept)
        if not shown and two_view.is_rotation(tested.matches - tested.explained, tested.matches):
            return tested, PureRotations()
        little = tested.matches - tested.explained <= FEW_MATCHES * tested.matches and shown <= FEW_PAIRS * len(kept)
        return PureRotations(), tested if little else PureRotations()

    def _joined(self, residuals: Sequence[np.ndarray]) -> PureRotations:
        matches = sum(map(len, residuals))
        return PureRotations(frozenset(self.pairs), matches, matches - sum(map(_unexplained, residuals)))

    def _strongest_tree(self) -> list[tuple[int, int]]:
        """The pairs that connect the component with most inliers."""
        count = len(self.cameras.ids)
        weights = [1 / self.verified.counts[pair][1] for pair in self.pairs]
        graph = coo_matrix((weights, np.array(self.pairs).T), (count, count))
        tree = csgraph.minimum_spanning_tree(graph.tocsr()).tocoo()
        return [(int(i), int(j)) for i, j in zip(tree.row, tree.col)]


def _spread(count: int, most: int) -> np.ndarray:
    """At most `most` of the indices of `count`, evenly spread from the first one on."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _unexplained(residuals: np.ndarray) -> int:
    return int(np.count_nonzero(residuals > UNEXPLAINED_PX))


def _has_parallax(residuals: np.ndarray) -> bool:
    return _unexplained(residuals) >= max(two_view.MIN_UNEXPLAINED, PARALLAX_SHARE * len(residuals))


def _contradicted(residuals: Mapping[tuple[int, int], np.ndarray]) -> set[tuple[int, int]]:
    """The pairs whose parallax cannot be right: a few rotations lead from one of its photos to the other, and its
    parallax is far larger than what these leave."""
    photos = sorted({index for pair in residuals for index in pair})
    row_of = {index: row for row, index in enumerate(photos)}
    rotated = [pair for pair, r in residuals.items() if _unexplained(r) <= ROTATION_SHARE * len(r)]
    edges = np.array([[row_of[index] for index in pair] for pair in rotated], dtype=np.int64).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(edges)), edges.T), (len(photos), len(photos)))
    steps = csgraph.shortest_path(graph.tocsr(), directed=False, unweighted=True)
    found = set()
    for pair, r in residuals.items():
        far = CONTRADICTED_PX * steps[row_of[pair[0]], row_of[pair[1]]]
        if _has_parallax(r) and 2 * np.count_nonzero(r > far) >= _unexplained(r):
            found.add(pair)
    return found


def _divided(pixels: np.ndarray, camera: SharedCamera, divisions: np.ndarray) -> np.ndarray:
    """Pixels (D, M, 2) of pixels (M, 2) without the distortion of lenses."""
    from_centre = pixels - camera.K[:2, 2]
    corner = (camera.width**2 + camera.height**2) / 4
    return camera.K[:2, 2] + from_centre / (1 + divisions[:, None, None] * (from_centre**2).sum(-1)[:, None] / corner)


def _focal_factors(camera1: SharedCamera, camera2: SharedCamera) -> np.ndarray:
    """The factors on both focal lengths that are tried."""
    if camera1.fixed and camera2.fixed:
        return np.ones(1)
    known = all(camera.fixed or camera.prior for camera in (camera1, camera2))
    return EXIF_FACTORS if known else two_view.FOCAL_FACTORS
