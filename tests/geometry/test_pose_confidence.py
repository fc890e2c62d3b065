"""The confidence of a pose: a law for each part of the evidence, and evidence of made-up matches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dune_cli.geometry import cameras, epipolar, poses
from dune_cli.geometry.pose_confidence import (
    GUESSED_FOCAL,
    NO_EVIDENCE,
    Evidence,
    MatchedPixels,
    confidence_from_evidence,
    coverage,
    two_view_evidence,
)

SIZE = (640, 480)
K = cameras.K_from_focal(500.0, *SIZE)
GOOD = Evidence(-400.0, 0.8, 0.6, 0.05, 0.2, 8.0)


@pytest.mark.parametrize(
    "worse",
    [
        {"log10_nfa": -40.0},
        {"inlier_ratio": 0.2},
        {"coverage": 0.05},
        {"second_motion": 0.4},
        {"repeatability_deg": 20.0},
        {"parallax_deg": 0.5},
        {"focal_known": False},
    ],
)
def test_every_part_of_the_evidence_counts(worse: dict[str, float]) -> None:
    assert 0 < confidence_from_evidence(replace(GOOD, **worse)) < confidence_from_evidence(GOOD) < 1


def test_chance_has_no_confidence_and_a_guessed_focal_length_is_never_sure() -> None:
    assert confidence_from_evidence(NO_EVIDENCE) == confidence_from_evidence(replace(GOOD, log10_nfa=-11.9)) == 0
    assert confidence_from_evidence(replace(GOOD, parallax_deg=float("nan"))) == 0
    assert (
        confidence_from_evidence(GOOD) > 0.9
        and confidence_from_evidence(replace(GOOD, focal_known=False)) <= GUESSED_FOCAL
    )


def test_coverage_is_the_share_of_a_rectangle() -> None:
    pixels = np.random.default_rng(0).uniform((0, 0), (320, 240), (20_000, 2))
    assert coverage(pixels, SIZE) == pytest.approx(0.25, rel=0.02)
    assert coverage(pixels[:2], SIZE) == 0


def _of(pose: np.ndarray, points1: np.ndarray, points2: np.ndarray) -> Evidence:
    inliers = epipolar.sampson_error_px(points1, points2, K, K, pose) < 1
    found = epipolar.RelativePose(pose, inliers)
    matches = MatchedPixels(points1, points2, (SIZE, SIZE), (1.0, 1.0))
    return two_view_evidence(matches, K, K, found, [found], 0)


def test_a_second_motion_takes_the_confidence_away() -> None:
    """Half of the matches move one way, half another: a facade that looks like its neighbour, shifted."""
    rng = np.random.default_rng(0)
    pixels = rng.uniform((0, 0), SIZE, (400, 2))
    points = cameras.backproject(pixels, rng.uniform(3, 9, 400), K)
    motions = [
        poses.from_rotation_translation(poses.rotation_from_rotvec(np.array([0, turn, 0])), np.array([shift, 0.1, 0.2]))
        for turn, shift in ((0.05, 0.9), (-0.1, -0.9))
    ]
    seen = [cameras.project(poses.transform_points(motion, points), K) for motion in motions]
    unit = motions[0].copy()
    unit[:3, 3] /= np.linalg.norm(unit[:3, 3])
    one = _of(unit, pixels, seen[0])
    two = _of(unit, pixels, np.where(np.arange(400)[:, None] < 220, seen[0], seen[1]))
    assert one.second_motion < 0.05 and one.inlier_ratio > 0.99 and two.second_motion > 0.5
    assert confidence_from_evidence(one) > 0.9 > confidence_from_evidence(two) + 0.05


def test_what_stays_at_its_pixels_is_no_evidence() -> None:
    pixels = np.random.default_rng(0).uniform((0, 0), SIZE, (400, 2))
    along = poses.from_rotation_translation(np.eye(3), np.array([1.0, 0, 0]))
    assert _of(along, pixels, pixels) == NO_EVIDENCE
