"""EXIF orientations: arrays, pixels and cameras of stored and upright photos agree."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.geometry import cameras, poses
from dune_cli.io import orientation

ALL = range(1, 9)
TURNS = (1, 3, 6, 8)


@pytest.mark.parametrize("tag", ALL)
def test_pixels_go_where_the_picture_says(tag: int) -> None:
    stored = np.arange(5 * 7 * 2).reshape(5, 7, 2)
    upright = orientation.to_upright(stored, tag)
    np.testing.assert_array_equal(orientation.to_stored(upright, tag), stored)
    height, width = upright.shape[:2]
    assert orientation.turned_size(width, height, tag) == (7, 5)
    assert orientation.turned_size(7, 5, tag) == (width, height)
    grid = cameras.pixel_grid(height, width)
    there = cameras.transform_pixels(orientation.stored_from_upright(width, height, tag), grid)
    x, y = np.moveaxis(there.astype(int), -1, 0)
    np.testing.assert_array_equal(stored[y, x], upright)


@pytest.mark.parametrize("tag", TURNS)
def test_the_stored_camera_sees_a_point_at_its_stored_pixel(tag: int) -> None:
    rng = np.random.default_rng(tag)
    K = np.array([[300.0, 0, 151.3], [0, 310, 118.2], [0, 0, 1]])
    pose = poses.from_rotation_translation(poses.rotation_from_rotvec(rng.normal(size=3)), rng.normal(size=3))
    points = poses.transform_points(pose, rng.normal((0, 0, 5), 1, (20, 3)))
    seen = cameras.project(poses.transform_points(poses.inverse(pose), points), K)
    stored = orientation.stored_camera(K, pose, 320, 240, tag)
    assert (stored.width, stored.height) == ((240, 320) if tag > 4 else (320, 240))
    np.testing.assert_array_equal(stored.K * [[0, 1, 0], [1, 0, 0], [1, 1, 0]], np.zeros((3, 3)))
    assert stored.K[0, 0] > 0 and stored.K[1, 1] > 0 and np.linalg.det(stored.world_from_cam) == pytest.approx(1)
    again = cameras.project(poses.transform_points(poses.inverse(stored.world_from_cam), points), stored.K)
    np.testing.assert_allclose(again, cameras.transform_pixels(stored.stored_from_upright, seen), atol=1e-9)


@pytest.mark.parametrize("tag", sorted(set(ALL) - set(TURNS)))
def test_a_mirrored_picture_has_no_camera(tag: int) -> None:
    with pytest.raises(ValueError, match="mirrors"):
        orientation.stored_camera(np.eye(3), np.eye(4), 4, 3, tag)


@pytest.mark.parametrize("value", [None, 0, 9, "6", 6.0, -1, True])
def test_tags_that_mean_nothing(value: object) -> None:
    assert orientation.from_tag(value) == 1 and orientation.from_tag(6) == 6
