"""How sure a pose is: the share of poses with such evidence that are within 10 degrees.

Chance alone is a poor judge: a lens that is not the photo's, a building with two alike sides and a turntable before a
still background all have hundreds of matches that agree beyond chance. What tells them is the share that agrees, how
much of the photos it covers, what a second motion finds in the rest, and whether the solver comes to one pose again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from math import log10

import numpy as np

from dune_cli.geometry import epipolar, two_view
from dune_cli.geometry import two_view as pair_checks

MAX_LOG10_NFA = -12.0  # above it chance may explain the agreement, and there is no confidence


STILL = 1.5  # matched pixels: a match that moves no further lies at the same pixels
SECOND_ITERATIONS = 2000  # of the search for a second motion
KNOWN_POINTS_DEG = 10.0  # in the place of the parallax, where the points are known and none is needed


@dataclass(frozen=True)
class Evidence:
    """What a pose rests on.

    `log10_nfa`: of the number of such agreements to expect by chance. `share` of the matches that agree. `spread`:
    of the photo which they cover less, the share that a rectangle with their spread fills. `second`: matches outside
    that agree on another motion, per agreeing one. `repeatability_deg`: how far repeated runs of the solver lie from
    the pose (rotation or direction, whichever is more; the median). `parallax_deg`: median angle at which the agreeing
    points see both cameras (KNOWN_POINTS_DEG for a pose on known points). `focal_known`: the focal lengths are
    no guesses.
    """

    log10_nfa: float
    share: float
    spread: float
    second: float
    repeatability_deg: float
    parallax_deg: float
    focal_known: bool = True

    def features(self) -> np.ndarray:
        """(6,) what the logistic regression sees; each grows with score but for `second` and `repeatability_deg`."""
        return np.array(
            [
                np.log10(np.clip(-self.log10_nfa, 1.0, 1000.0)),
                np.log10(np.clip(self.share, 0.05, 1.0)),
                np.log10(np.clip(self.spread, 0.01, 1.0)),
                min(self.second, 0.5),
                np.log10(np.clip(self.repeatability_deg, 0.3, 30.0)),
                np.log10(np.clip(self.parallax_deg, 0.3, 10.0)),
            ]
        )


NO_EVIDENCE = Evidence(float("inf"), 0.0, 0.0, 0.0, 90.0, 0.0)

# Fitted by `examples/calibrate_confidence.py` on sift and xfeat-lighterglue, with true and (at 0.15) wrong lenses;
# the intercept is 0.5 lower than fitted, for scenes unlike these.
INTERCEPT = -3.697
WEIGHTS = (1.865, 1.397, 1.191, -4.56, -1.201, 2.976)
GUESSED_LENS = 0.65  # of the poses that look sure with a focal length 0.6 or 1.6 times the true one, so many are right


def confidence_from_evidence(evidence: Evidence) -> float:
    """[0, 1): the share of poses within 10 degrees; 0 where chance may explain the evidence."""
    if not evidence.log10_nfa <= MAX_LOG10_NFA or not np.isfinite(astuple(evidence)).all():
        return 0.0
    sure = 1 / (1 + np.exp(-(INTERCEPT + evidence.features() @ np.array(WEIGHTS))))
    return float(sure if evidence.focal_known else GUESSED_LENS * sure)


def coverage(pixels: np.ndarray, size: tuple[int, int]) -> float:
    """The share of a photo of `size` (width, height) that a rectangle with the spread of `pixels` (M, 2) fills."""
    if len(pixels) < 3:
        return 0.0
    area = 12 * float(np.sqrt(max(np.linalg.det(np.cov(pixels.T)), 0.0)))
    return min(1.0, area / (size[0] * size[1]))


def two_view_evidence(
    points1: np.ndarray,
    points2: np.ndarray,
    K1: np.ndarray,
    K2: np.ndarray,
    pose: epipolar.RelativePose,
    runs: Sequence[epipolar.RelativePose],
    sizes: tuple[tuple[int, int], tuple[int, int]],
    pixel_sizes_px: tuple[float, float],
    seed: int,
    tries: int = 1,
    focal_known: bool = True,
) -> Evidence:
    """Of a relative pose from matches (M, 2) in pixels; `runs`: what the solver found in several runs, at best `pose`
    each time; `tries`: out of how many ways to match the photos these matches were chosen.

    Matches at the same pixels of both photos are no evidence: a still background agrees with whatever turns before it,
    and shows no direction.
    """
    moving = np.linalg.norm(points1 - points2, axis=1) > STILL * max(1.0, *pixel_sizes_px)
    agree = pose.inliers & moving
    if np.count_nonzero(agree) < epipolar.MIN_MATCHES:
        return NO_EVIDENCE
    chance = pair_checks.log10_nfa_epipolar(int(agree.sum()), int(moving.sum()), pixel_sizes_px, sizes)
    errors = [max(map(float, epipolar.pose_error(run.cam2_from_cam1, pose.cam2_from_cam1))) for run in runs]
    points = two_view.triangulate(points1[agree], points2[agree], K1, K2, pose.cam2_from_cam1)
    with np.errstate(invalid="ignore"):
        angles = two_view.parallax_angles(np.nan_to_num(points, posinf=1e9, neginf=-1e9), pose.cam2_from_cam1)
    return match_evidence(
        points1,
        points2,
        agree,
        moving,
        sizes,
        pixel_sizes_px,
        chance + log10(tries),
        float(np.degrees(np.median(errors))) if errors else 0.0,
        float(np.degrees(np.median(angles))),
        seed,
        focal_known,
    )


def match_evidence(
    points1: np.ndarray,
    points2: np.ndarray,
    agree: np.ndarray,
    use: np.ndarray,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    pixel_sizes_px: tuple[float, float],
    log10_nfa: float,
    repeatability_deg: float,
    parallax_deg: float,
    seed: int,
    focal_known: bool = True,
) -> Evidence:
    """Of matches (M, 2) of which `agree` (M,) agree with a pose, out of those in `use` (M,)."""
    rest = use & ~agree
    _, other = epipolar.fundamental_inliers(points1[rest], points2[rest], max(pixel_sizes_px), seed, SECOND_ITERATIONS)
    return Evidence(
        log10_nfa=log10_nfa,
        share=float(agree.sum() / max(use.sum(), 1)),
        spread=min(coverage(points[agree], size) for points, size in zip((points1, points2), sizes)),
        second=float(other.sum() / max(agree.sum(), 1)),
        repeatability_deg=repeatability_deg,
        parallax_deg=parallax_deg,
        focal_known=focal_known,
    )
