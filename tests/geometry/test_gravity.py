"""Down, of cameras that are held level and of planes of vertical edges."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.geometry import poses
from dune_cli.geometry.gravity import level_down, upright_from_world, vertical_from_planes

DOWN = np.array([0.3, 0.9, -0.2]) / np.linalg.norm([0.3, 0.9, -0.2])


def level_cameras(yaws_deg: np.ndarray, pitch_deg: float, roll_deg: float = 0.0) -> np.ndarray:
    """(N, 3, 3) cameras in a world where DOWN is down."""
    rng = np.random.default_rng(0)
    x = np.cross(DOWN, [0, 0, 1.0])
    x /= np.linalg.norm(x)
    base = np.stack([x, DOWN, np.cross(x, DOWN)], axis=1)
    turns = (
        poses.rotation_from_rotvec(np.radians([0, yaw, 0]))
        @ poses.rotation_from_rotvec(np.radians([-pitch_deg, 0, 0]))
        @ poses.rotation_from_rotvec(np.radians([0, 0, roll_deg * rng.normal()]))
        for yaw in yaws_deg
    )
    return np.stack([base @ turn for turn in turns])


@pytest.mark.parametrize("pitch_deg", [0.0, 25.0, 90.0])
def test_cameras_around_a_place_tell_it_whatever_their_pitch(pitch_deg: float) -> None:
    down, off_deg, told = level_down(level_cameras(np.linspace(0, 300, 12), pitch_deg, 1.0))
    assert told and off_deg < 2
    assert np.degrees(np.arccos(down @ DOWN)) < 1.5


def test_cameras_that_look_one_way_leave_the_pitch_open() -> None:
    down, off_deg, told = level_down(level_cameras(np.linspace(-4, 4, 8), 0.0, 0.5))
    assert not told and off_deg < 1 and np.degrees(np.arccos(down @ DOWN)) < 1


def planes(count: int, share: float, noise_deg: float, seed: int = 0) -> np.ndarray:
    """(count, 3) normals, of which a share is across DOWN."""
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(count, 3))
    across = rng.random(count) < share
    normals[across] -= (normals[across] @ DOWN)[:, None] * DOWN
    normals /= np.linalg.norm(normals, axis=1)[:, None]
    normals += np.radians(noise_deg) * rng.normal(size=normals.shape)
    return normals / np.linalg.norm(normals, axis=1)[:, None]


def test_vertical_edges_among_others_tell_it() -> None:
    guess = poses.rotation_from_rotvec(np.radians([12.0, 0, 10])) @ DOWN
    normals = planes(600, 0.4, 0.3)
    found = vertical_from_planes(normals, np.ones(600), guess, seed=0)
    assert found is not None and found.lines > 200
    off_deg = np.degrees(np.arccos(min(found.down @ DOWN, 1.0)))
    assert off_deg < 0.15 and 0.005 < found.sd_deg < 0.1


def test_few_or_no_vertical_edges_do_not() -> None:
    assert vertical_from_planes(planes(600, 0.0, 0.3), np.ones(600), DOWN, seed=0) is None
    assert vertical_from_planes(planes(20, 1.0, 0.3), np.ones(20), DOWN, seed=0) is None


def test_the_world_keeps_the_way_that_the_camera_looks() -> None:
    pose = poses.from_rotation_translation(level_cameras(np.array([40.0]), 20.0)[0], np.zeros(3))
    turn = upright_from_world(DOWN, pose)
    turned = turn @ pose
    np.testing.assert_allclose(turn[:3, :3] @ DOWN, [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(turned[:3, 0], [1, 0, 0], atol=1e-12)  # level
    np.testing.assert_allclose(turned[:3, 2], [0, np.sin(np.radians(20)), np.cos(np.radians(20))], atol=1e-12)
    straight = poses.from_rotation_translation(level_cameras(np.array([40.0]), 90.0)[0], np.zeros(3))
    turned = upright_from_world(DOWN, straight) @ straight
    np.testing.assert_allclose(turned[:3, 1], [0, 0, -1], atol=1e-12)  # the upper edge points ahead
