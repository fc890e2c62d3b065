"""Which matched pairs agree on a motion: pycolmap's two-view geometries of what MAGSAC leaves of the matches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dune_cli import console, optional
from dune_cli.geometry import epipolar, two_view
from dune_cli.geometry.cameras import HALF_PIXEL
from dune_cli.geometry.pose_confidence import confidence_of, evidence_of_pair
from dune_cli.matchers.filtering import Thumbnail, moving_matches
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.scene import ImagePair

MIN_INLIERS = 15
MAX_LOG10_FALSE_ALARMS = -4.0
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
class Verified:
    """Pairs whose matches agree on a motion: for each pair its `geometry` (pycolmap's), and for every pair that was
    compared how many matches there were and how many agree. `turned`: pairs that agree and are left out of `geometry`,
    because their group of photos shows no parallax at all. `fixed`: how many matches of a pair were left out, because
    they lie at the same pixels of both photos. `sure`: the confidence of those with a geometry."""

    geometry: dict[tuple[int, int], Any]
    counts: dict[tuple[int, int], tuple[int, int]]
    turned: frozenset[tuple[int, int]] = frozenset()
    fixed: Mapping[tuple[int, int], int] = field(default_factory=dict)
    sure: Mapping[tuple[int, int], float] = field(default_factory=dict)

    def pairs(self) -> list[ImagePair]:
        """All that were compared."""
        return [ImagePair(pair, *counts, self.sure.get(pair, 0.0)) for pair, counts in self.counts.items()]


def verify(
    found: Correspondences,
    lenses: Sequence[SharedCamera],
    lens_of: Sequence[int],
    seed: int,
    scale: float,
    thumbnail_of: Callable[[int], Thumbnail],
) -> Verified:
    """Two-view geometries of all pairs (COLMAP's, which tells calibrated, uncalibrated, planar and panoramic ones
    apart); one that chance explains is none. `scale`: pixels of a photo per matched pixel.

    Matches of what does not move in the picture (a caption on all photos) join no photos; `thumbnail_of` gives a photo
    that has such matches.
    """
    pycolmap = open_pycolmap()
    options = pycolmap.TwoViewGeometryOptions()
    options.min_num_inliers = MIN_INLIERS
    options.ransac.random_seed = seed
    options.ransac.max_error = THRESHOLD_PX * scale
    cameras = [camera_of(pycolmap, lens) for lens in lenses]
    geometry, counts, fixed, sure = {}, {}, {}, {}
    for (i, j), matches in console.progress(found.matches.items(), "verifying", len(found.matches), "pair"):
        inliers = 0
        if len(matches) >= MIN_INLIERS:
            one, two = cameras[lens_of[i]], cameras[lens_of[j]]
            points = [found.keypoints[index] + HALF_PIXEL for index in (i, j)]
            sizes = tuple((lens.width, lens.height) for lens in (lenses[lens_of[i]], lenses[lens_of[j]]))
            keep = moving_matches(
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
            if inliers >= MIN_INLIERS and alarms <= MAX_LOG10_FALSE_ALARMS:
                geometry[i, j] = estimate
                where = [found.keypoints[index][matches[:, side]] for side, index in enumerate((i, j))]
                agree = np.isin(matches[:, 0], np.asarray(estimate.inlier_matches)[:, 0])
                sure[i, j] = _confidence(*where, agree, lenses[lens_of[i]], lenses[lens_of[j]], scale, seed)
        counts[i, j] = (len(matches), inliers)
    return Verified(geometry, counts, fixed=fixed, sure=sure)


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
    return confidence_of(
        evidence_of_pair(points1, points2, one.K, two.K, poses[0], poses[1:], sizes, pixels, seed, lens_known=known)
    )


def open_pycolmap() -> Any:
    """The package, without its remarks."""
    pycolmap = optional.import_pycolmap("structure from motion")
    pycolmap.logging.minloglevel = max(pycolmap.logging.minloglevel, 3)  # its remarks are not ours
    return pycolmap


def camera_of(pycolmap: Any, lens: SharedCamera) -> Any:
    """A fixed lens as PINHOLE, others as SIMPLE_RADIAL, whose distortion is found with the rest."""
    fx, fy, cx, cy = lens.K[0, 0], lens.K[1, 1], lens.K[0, 2] + HALF_PIXEL, lens.K[1, 2] + HALF_PIXEL
    if lens.fixed:
        model, params = "PINHOLE", [fx, fy, cx, cy]
    else:
        model, params = "SIMPLE_RADIAL", [float(np.sqrt(fx * fy)), cx, cy, 0.0]
    camera = pycolmap.Camera(model=model, width=lens.width, height=lens.height, params=params)
    camera.has_prior_focal_length = lens.fixed or lens.prior
    return camera
