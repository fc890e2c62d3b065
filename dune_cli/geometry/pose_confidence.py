"""Pose confidence: the share of poses with equal evidence that are within 10 degrees.

An a-contrario test alone is not enough: a wrong focal length, a building with two similar sides and a turntable before
a static background all have hundreds of matches that agree beyond chance. What tells them apart is the inlier ratio,
the coverage of the photos, a second motion among the outliers, and whether repeated runs of the solver agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from math import log10

import numpy as np

from dune_cli.geometry import epipolar, two_view

MAX_LOG10_NFA = -12.0  # above it chance may explain the agreement, and the confidence is 0
STATIC_PX = 1.5  # matched pixels: a match that moves no further lies at the same pixels
SECOND_ITERATIONS = 2000  # of the search for a second motion
KNOWN_POINTS_DEG = 10.0  # stands for the parallax where the points are known and none is needed


@dataclass(frozen=True)
class Evidence:
    """The evidence for a pose.

    `log10_nfa`: log10 of the number of such agreements to expect by chance (false alarms). `inlier_ratio` of the
    matches. `coverage`: the smaller of the shares of both photos that a rectangle with the spread of the inliers fills.
    `second_motion`: outliers that agree on another motion, per inlier. `repeatability_deg`: median distance of repeated
    runs of the solver from the pose (rotation or direction, whichever is larger). `parallax_deg`: median angle between
    an inlier's rays (KNOWN_POINTS_DEG for a pose on known points). `focal_known`: no focal length is a guess.
    """

    log10_nfa: float
    inlier_ratio: float
    coverage: float
    second_motion: float
    repeatability_deg: float
    parallax_deg: float
    focal_known: bool = True

    def features(self) -> np.ndarray:
        """(6,) inputs of the logistic regression. The confidence grows with each but `second_motion` and
        `repeatability_deg`."""
        return np.array(
            [
                np.log10(np.clip(-self.log10_nfa, 1.0, 1000.0)),
                np.log10(np.clip(self.inlier_ratio, 0.05, 1.0)),
                np.log10(np.clip(self.coverage, 0.01, 1.0)),
                min(self.second_motion, 0.5),
                np.log10(np.clip(self.repeatability_deg, 0.3, 30.0)),
                np.log10(np.clip(self.parallax_deg, 0.3, 10.0)),
            ]
        )


NO_EVIDENCE = Evidence(float("inf"), 0.0, 0.0, 0.0, 90.0, 0.0)

# Fitted by `examples/calibrate_confidence.py` on sift and xfeat-lighterglue, with true and (at 0.15) wrong focal
# lengths; the intercept is 0.5 lower than fitted, for scenes unlike these.
INTERCEPT = -3.697
WEIGHTS = (1.865, 1.397, 1.191, -4.56, -1.201, 2.976)
GUESSED_FOCAL = 0.65  # the share of confident poses that are right with 0.6 or 1.6 times the true focal length


def confidence_from_evidence(evidence: Evidence) -> float:
    """[0, 1): the share of poses within 10 degrees; 0 where chance may explain the evidence."""
    if not evidence.log10_nfa <= MAX_LOG10_NFA or not np.isfinite(astuple(evidence)).all():
        return 0.0
    confidence = 1 / (1 + np.exp(-(INTERCEPT + evidence.features() @ np.array(WEIGHTS))))
    return float(confidence if evidence.focal_known else GUESSED_FOCAL * confidence)


def coverage(pixels: np.ndarray, size: tuple[int, int]) -> float:
    """The share of a photo of `size` (width, height) that a rectangle with the spread of `pixels` (M, 2) fills."""
    if len(pixels) < 3:
        return 0.0
    area = 12 * float(np.sqrt(max(np.linalg.det(np.cov(pixels.T)), 0.0)))
    return min(1.0, area / (size[0] * size[1]))


@dataclass(frozen=True)
class MatchedPixels:
    """The matches of two photos, as evidence takes them: `pixels1`, `pixels2` (M, 2), the `sizes` (width, height) of
    the photos, and `pixel_sizes_px`, pixels of each photo per matched pixel. `tries`: of how many ways to match the
    photos the best was taken. `focal_known`: no focal length is a guess."""

    pixels1: np.ndarray
    pixels2: np.ndarray
    sizes: tuple[tuple[int, int], tuple[int, int]]
    pixel_sizes_px: tuple[float, float]
    tries: int = 1
    focal_known: bool = True


def two_view_evidence(
    matches: MatchedPixels,
    K1: np.ndarray,
    K2: np.ndarray,
    pose: epipolar.RelativePose,
    runs: Sequence[epipolar.RelativePose],
    seed: int,
) -> Evidence:
    """The evidence for a relative pose. `runs`: the poses of repeated runs of the solver.

    Static matches, at the same pixels of both photos, do not count: a static background agrees with whatever rotates
    before it, and shows no direction.
    """
    pixels1, pixels2 = matches.pixels1, matches.pixels2
    moving = np.linalg.norm(pixels1 - pixels2, axis=1) > STATIC_PX * max(1.0, *matches.pixel_sizes_px)
    inliers = pose.inliers & moving
    if np.count_nonzero(inliers) < epipolar.MIN_MATCHES:
        return NO_EVIDENCE
    log10_nfa = two_view.log10_nfa_epipolar(
        int(inliers.sum()), int(moving.sum()), matches.pixel_sizes_px, matches.sizes
    )
    errors = [max(map(float, epipolar.pose_error(run.cam2_from_cam1, pose.cam2_from_cam1))) for run in runs]
    points = two_view.triangulate(pixels1[inliers], pixels2[inliers], K1, K2, pose.cam2_from_cam1)
    with np.errstate(invalid="ignore"):
        angles = two_view.parallax_angles(np.nan_to_num(points, posinf=1e9, neginf=-1e9), pose.cam2_from_cam1)
    repeatability_deg = float(np.degrees(np.median(errors))) if errors else 0.0
    parallax_deg = float(np.degrees(np.median(angles)))
    return match_evidence(matches, inliers, moving, log10_nfa, repeatability_deg, parallax_deg, seed)


def match_evidence(
    matches: MatchedPixels,
    inliers: np.ndarray,
    used: np.ndarray,
    log10_nfa: float,
    repeatability_deg: float,
    parallax_deg: float,
    seed: int,
) -> Evidence:
    """The evidence from matches with the `inliers` (M,) bool of a pose among those `used` (M,) bool. `log10_nfa`: of
    one try."""
    outliers = used & ~inliers
    pixels = matches.pixels1, matches.pixels2
    _, second = epipolar.fundamental_inliers(
        *(points[outliers] for points in pixels), max(matches.pixel_sizes_px), seed, SECOND_ITERATIONS
    )
    return Evidence(
        log10_nfa=log10_nfa + log10(matches.tries),
        inlier_ratio=float(inliers.sum() / max(used.sum(), 1)),
        coverage=min(coverage(points[inliers], size) for points, size in zip(pixels, matches.sizes)),
        second_motion=float(second.sum() / max(inliers.sum(), 1)),
        repeatability_deg=repeatability_deg,
        parallax_deg=parallax_deg,
        focal_known=matches.focal_known,
    )
