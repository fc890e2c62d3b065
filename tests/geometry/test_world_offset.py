"""Where coordinates are too large for float32, and what is taken off them."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.geometry.poses import add_world_offset, subtract_world_offset, world_offset

STEPS = np.random.default_rng(0).normal(0, 3, (20, 3))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("away", [1e5, 1e7, 1e9])
def test_what_is_left_is_held_by_float32(size: float, away: float) -> None:
    centres = (STEPS + away * np.array([0.11, -1.0, 0.7])) * size
    offset = world_offset(centres)
    left = (centres - offset).astype(np.float32).astype(np.float64) + offset
    assert np.abs(left - centres).max() < 1e-5 * size
    unit = 10.0 ** np.floor(np.log10(size) + 1e-9)
    np.testing.assert_allclose(offset / unit, np.rint(offset / unit), rtol=1e-12)  # a round number


@pytest.mark.parametrize("shift", [0.0, 10.0, -300.0])
def test_near_coordinates_stay_as_they_are(shift: float) -> None:
    assert world_offset(STEPS + shift) is None and world_offset((STEPS + shift) * 1e-6) is None


def test_cameras_that_tell_no_distance() -> None:
    far = np.array([512345.678, 4567890.123, 187.5])
    assert world_offset(np.zeros((0, 3))) is None and world_offset(far[None]) is None
    assert world_offset(np.stack([far, far])) is None
    assert world_offset(np.stack([far, far, far + 1])) is not None  # one of them stood still


def test_there_and_back() -> None:
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[:, :3, 3] = STEPS[:2]
    offset = np.array([1.0, 2, 3])
    np.testing.assert_allclose(add_world_offset(subtract_world_offset(poses, offset), offset), poses)
    assert add_world_offset(poses, None) is poses and subtract_world_offset(poses, None) is poses
