"""Chance, one view twice, and a turn on the spot, told from real pairs on made-up matches."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.geometry import absolute_pose, cameras, epipolar, poses, two_view

K = np.array([[500.0, 0, 319.5], [0, 500.0, 239.5], [0, 0, 1]])
SIZE = (640, 480)


def test_chance_is_told_from_structure() -> None:
    def alarms(inliers: int, matches: int) -> float:
        return two_view.log10_nfa_epipolar(inliers, matches, (1.0, 1.0), [SIZE, SIZE])

    assert alarms(12, 300) > 0  # what random matches give
    assert alarms(60, 300) < -20
    assert alarms(12, 14) < -5
    assert alarms(5, 400) == alarms(0, 0) == float("inf")
    assert all(alarms(k + 1, 300) < alarms(k, 300) for k in range(20, 299))


def test_the_photo_matched_more_coarsely_decides() -> None:
    coarse = two_view.log10_nfa_epipolar(40, 60, (3.0, 3.0), [SIZE, SIZE])
    assert two_view.log10_nfa_epipolar(40, 60, (1.0, 3.0), [SIZE, SIZE]) == coarse
    assert two_view.log10_nfa_epipolar(40, 60, (3.0, 1.0), [SIZE, SIZE]) == coarse
    assert two_view.log10_nfa_epipolar(40, 60, (1.0, 1.0), [SIZE, SIZE]) < coarse - 5


@pytest.mark.parametrize("seed", range(3))
def test_random_matches_and_points_are_chance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels1, pixels2 = rng.uniform(0, SIZE, (2, 150, 2))
    found = epipolar.estimate_relative_pose(pixels1, pixels2, K, K, 1.0, seed)
    inliers = 0 if found is None else int(found.inliers.sum())
    assert two_view.log10_nfa_epipolar(inliers, 150, (1.0, 1.0), [SIZE, SIZE]) > -2
    points = cameras.backproject(pixels1, rng.uniform(1, 5, 150), K)
    camera = absolute_pose.estimate_absolute_pose(points, pixels2, K, 3.0, seed)
    inliers = 0 if camera is None else int(camera.inliers.sum())
    assert two_view.log10_nfa_pnp(inliers, 150, 3.0, SIZE) > -2


def test_a_few_points_that_agree_fix_a_camera_more_surely_than_a_pair() -> None:
    assert two_view.log10_nfa_pnp(10, 60, 3.0, SIZE) < -8
    assert two_view.log10_nfa_epipolar(10, 60, (1.0, 1.0), [SIZE, SIZE]) > 0
    assert two_view.log10_nfa_pnp(3, 60, 3.0, SIZE) == float("inf")


def test_one_view_twice() -> None:
    pixels = np.random.default_rng(0).uniform(0, SIZE, (50, 2))
    assert two_view.is_same_view(pixels, pixels + 0.3, (1.0, 1.0))
    assert not two_view.is_same_view(pixels, pixels + 0.9, (1.0, 1.0))
    assert two_view.is_same_view(pixels, pixels + 0.9, (1.0, 2.0))
    assert not two_view.is_same_view(pixels[:0], pixels[:0], (1.0, 1.0))


@pytest.mark.parametrize("shift, guess, rotation", [(0.0, 1.0, True), (0.0, 1.3, True), (0.5, 1.0, False)])
def test_a_turn_on_the_spot(shift: float, guess: float, rotation: bool) -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform([-2, -1.5, 3], [2, 1.5, 8], (200, 3))
    pose = poses.from_rotation_translation(poses.rotation_from_rotvec(np.array([0.02, 0.2, 0.0])), [shift, 0, 0])
    pixels1 = cameras.project(points, K) + rng.normal(0, 0.3, (200, 2))
    pixels2 = cameras.project(poses.transform_points(pose, points), K) + rng.normal(0, 0.3, (200, 2))
    guessed = K * np.array([[guess, 1, 1], [1, guess, 1], [1, 1, 1]])
    moving = two_view.unexplained_by_rotation(pixels1, pixels2, guessed, guessed, 1.0, focal_unknown=guess != 1)
    assert two_view.is_rotation(moving, 200) is rotation


def test_how_many_must_move() -> None:
    assert two_view.is_rotation(7, 20) and not two_view.is_rotation(8, 20)
    assert two_view.is_rotation(49, 500) and not two_view.is_rotation(50, 500)
