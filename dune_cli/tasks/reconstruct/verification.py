"""Which matched pairs agree on a motion: pycolmap's two-view geometries of what MAGSAC leaves of the matches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dune_cli import console, optional
from dune_cli.geometry import pair_checks
from dune_cli.io.colmap import HALF_PIXEL
from dune_cli.tasks.reconstruct.correspondences import Correspondences

MIN_INLIERS = 15
MAX_LOG10_FALSE_ALARMS = -4.0
THRESHOLD_PX = 2.0  # half of COLMAP's own: cameras of three real sets came out up to twice as exact


@dataclass(frozen=True)
class Lens:
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
    compared how many matches there were and how many agree."""

    geometry: dict[tuple[int, int], Any]
    counts: dict[tuple[int, int], tuple[int, int]]


def verify(found: Correspondences, lenses: Sequence[Lens], lens_of: Sequence[int], seed: int, scale: float) -> Verified:
    """Two-view geometries of all pairs (COLMAP's, which tells calibrated, uncalibrated, planar and panoramic ones
    apart); one that chance explains is none. `scale`: pixels of a photo per matched pixel."""
    pycolmap = open_pycolmap()
    options = pycolmap.TwoViewGeometryOptions()
    options.min_num_inliers = MIN_INLIERS
    options.ransac.random_seed = seed
    options.ransac.max_error = THRESHOLD_PX * scale
    cameras = [camera_of(pycolmap, lens) for lens in lenses]
    geometry, counts = {}, {}
    for (i, j), matches in console.progress(found.matches.items(), "verifying", len(found.matches), "pair"):
        inliers = 0
        if len(matches) >= MIN_INLIERS:
            one, two = cameras[lens_of[i]], cameras[lens_of[j]]
            points = [found.keypoints[index] + HALF_PIXEL for index in (i, j)]
            places = [points[side][matches[:, side]] for side in (0, 1)]
            good = matches[_epipolar(*places, THRESHOLD_PX * scale, seed)]
            estimate = pycolmap.estimate_two_view_geometry(one, points[0], two, points[1], good, options)
            inliers = len(estimate.inlier_matches)
            limits = (THRESHOLD_PX * scale,) * 2
            sizes = [(lens.width, lens.height) for lens in (lenses[lens_of[i]], lenses[lens_of[j]])]
            alarms = pair_checks.log10_chance_epipolar(inliers, len(matches), limits, sizes)
            if inliers >= MIN_INLIERS and alarms <= MAX_LOG10_FALSE_ALARMS:
                geometry[i, j] = estimate
        counts[i, j] = (len(matches), inliers)
    return Verified(geometry, counts)


def _epipolar(points1: np.ndarray, points2: np.ndarray, threshold_px: float, seed: int) -> np.ndarray:
    """(M,) bool: the matches that MAGSAC's fundamental matrix leaves (none where it finds no matrix).

    It takes milliseconds where pycolmap's RANSAC, which stops early only where most matches are right, takes a second.
    """
    import cv2

    params = cv2.UsacParams()
    params.threshold = threshold_px
    params.confidence = 0.9999
    params.maxIterations = 10_000
    params.randomGeneratorState = seed
    params.score = cv2.SCORE_METHOD_MAGSAC
    params.loMethod = cv2.LOCAL_OPTIM_SIGMA
    params.final_polisher = cv2.MAGSAC
    try:
        F, inliers = cv2.findFundamentalMat(points1, points2, params)
    except cv2.error:  # matches that all lie on one point make some OpenCV versions throw
        return np.zeros(len(points1), dtype=bool)
    return np.zeros(len(points1), dtype=bool) if F is None else inliers.reshape(-1) > 0


def open_pycolmap() -> Any:
    """The package, without its remarks."""
    pycolmap = optional.import_pycolmap("structure from motion")
    pycolmap.logging.minloglevel = max(pycolmap.logging.minloglevel, 3)  # its remarks are not ours
    return pycolmap


def camera_of(pycolmap: Any, lens: Lens) -> Any:
    """A fixed lens as PINHOLE, others as SIMPLE_RADIAL, whose distortion is found with the rest."""
    fx, fy, cx, cy = lens.K[0, 0], lens.K[1, 1], lens.K[0, 2] + HALF_PIXEL, lens.K[1, 2] + HALF_PIXEL
    if lens.fixed:
        model, params = "PINHOLE", [fx, fy, cx, cy]
    else:
        model, params = "SIMPLE_RADIAL", [float(np.sqrt(fx * fy)), cx, cy, 0.0]
    camera = pycolmap.Camera(model=model, width=lens.width, height=lens.height, params=params)
    camera.has_prior_focal_length = lens.fixed or lens.prior
    return camera
