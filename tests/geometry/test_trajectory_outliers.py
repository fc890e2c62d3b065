"""Poses far from their neighbours' motion: what moves evenly has none, what jumps is found, in any world and unit."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.geometry import poses
from dune_cli.geometry.trajectory_outliers import trajectory_outliers


def walk(count: int, step: float = 0.3, noise: float = 0.01, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Times and `world_from_cam` of a camera on a curve."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.integers(1, 4, count))
    found = []
    for t in times:
        centre = np.array([step * t, np.sin(0.1 * step * t), 1.5]) + noise * rng.standard_normal(3)
        rotation = poses.rotation_from_rotvec(np.array([0.0, 0.05 * t, 0.0]) + 0.01 * rng.standard_normal(3))
        found.append(poses.from_rotation_translation(rotation, centre))
    return times, np.stack(found)


@pytest.mark.parametrize("step", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_even_motion_has_no_outliers(step: float, seed: int) -> None:
    times, trajectory = walk(30, step, seed=seed)
    assert not trajectory_outliers(times, trajectory, np.full(30, 0.01)).any()


@pytest.mark.parametrize("at", [0, 1, 7, 8, 14])
def test_a_jump_is_found_wherever_it_is(at: int) -> None:
    times, trajectory = walk(15)
    jumped = trajectory.copy()
    jumped[at, :3, 3] += (0.0, 25.0, 0.0)
    expected = np.arange(15) == at
    sd = np.full(15, 0.02)
    assert (trajectory_outliers(times, jumped, sd) == expected).all()
    world = poses.from_rotation_translation(poses.rotation_from_rotvec(np.array([0.4, -1.0, 2.0])), np.ones(3))
    moved = world @ jumped
    moved[:, :3, 3] *= 7.0
    assert (trajectory_outliers(0.5 * times, moved, 7 * sd) == expected).all()
    # where the position is known so badly, the jump may be none
    assert not trajectory_outliers(times, jumped, np.where(expected, 10.0, 0.02)).any()


def test_a_turn_is_found_and_two_that_agree_with_each_other() -> None:
    times, trajectory = walk(12)
    turned = trajectory.copy()
    turned[5, :3, :3] = turned[5, :3, :3] @ poses.rotation_from_rotvec(np.array([0.0, 2.5, 0.0]))
    assert np.flatnonzero(trajectory_outliers(times, turned, np.full(12, 0.02))).tolist() == [5]
    pair = trajectory.copy()
    pair[5:7, :3, 3] += (0.0, 30.0, 0.0)
    assert np.flatnonzero(trajectory_outliers(times, pair, np.full(12, 0.02))).tolist() == [5, 6]


def test_few_poses_have_no_motion_to_compare_with() -> None:
    for count in range(3):
        assert trajectory_outliers(np.arange(count), np.tile(np.eye(4), (count, 1, 1)), np.ones(count)).shape == (
            count,
        )
