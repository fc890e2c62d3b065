"""Laws of virtual cameras, and of rays that hit points and triangles."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.geometry.cameras import project
from dune_cli.geometry.framing import (
    frame_camera,
    frame_extent,
    hit_triangle,
    nearest_to_ray,
    up_direction,
)
from dune_cli.geometry.poses import (
    from_rotation_translation,
    inverse,
    rotation_from_rotvec,
    transform_points,
)

RNG = np.random.default_rng(1)
POSE = from_rotation_translation(rotation_from_rotvec(np.array([0.2, -0.4, 0.1])), np.array([1.0, 2, 3]))
K = np.array([[500.0, 0, 310], [0, 480, 250], [0, 0, 1]])
SIZE = (640, 480)


@pytest.mark.parametrize("picture", [(320, 240), (1000, 300), (200, 500)])
def test_a_real_camera_shows_its_whole_photo_in_the_middle(picture: tuple[int, int]) -> None:
    points = transform_points(POSE, RNG.uniform([-2, -2, 3], [2, 2, 5], (50, 3)))
    view = frame_camera(K, POSE, SIZE, picture, points)
    corners = np.array([[-0.5, -0.5], [639.5, 479.5]])  # of the photo: outer edges of its pixels
    rays = np.column_stack([(corners - K[:2, 2]) / [500, 480], [1, 1]])
    low, high = project(rays, view.K)
    scale = min(picture[0] / 640, picture[1] / 480)
    assert np.allclose(high - low, np.array(SIZE) * scale)
    assert np.allclose((low + high) / 2, (np.array(picture) - 1) / 2)
    assert np.array_equal(view.world_from_cam, POSE)
    depth = transform_points(inverse(POSE), points)[:, 2]
    assert np.allclose(transform_points(inverse(POSE), view.pivot_world), [0, 0, np.median(depth)])


def test_turning_keeps_the_distance_and_the_pivot_in_the_middle() -> None:
    view = frame_camera(K, np.eye(4), SIZE, SIZE, np.array([[0.0, 0, 4]]))
    right = view.turned(90, 0)
    assert np.allclose(right.world_from_cam[:3, 3], [4, 0, 4])  # at the camera's right, x
    assert np.allclose(right.world_from_cam[:3, 2], [-1, 0, 0])  # looking back
    above = view.turned(0, 90)
    assert np.allclose(above.world_from_cam[:3, 3], [0, -4, 4])  # up is -y
    assert np.allclose(above.world_from_cam[:3, 2], [0, 1, 0])
    for azimuth, elevation in RNG.uniform(-180, 180, (5, 2)):
        other = frame_camera(K, POSE, SIZE, SIZE, np.zeros((0, 3))).turned(azimuth, elevation)
        assert np.allclose(transform_points(inverse(other.world_from_cam), other.pivot_world), [0, 0, 1])
    assert np.allclose(view.turned(0, 0).world_from_cam, np.eye(4))
    assert np.allclose(view.farther(2).world_from_cam[:3, 3], [0, 0, -4])


def test_the_extent_is_seen_and_outliers_do_not_matter() -> None:
    points = RNG.uniform([-3, -1, 10], [3, 1, 12], (4000, 3))
    view = frame_extent(points, (400, 300))
    pixels = project(transform_points(inverse(view.world_from_cam), points), view.K)
    inside = ((pixels >= -0.5) & (pixels <= [399.5, 299.5])).all(1)
    assert inside.mean() > 0.97
    assert np.ptp(pixels[:, 0]) > 300  # and fills the picture
    far = frame_extent(np.concatenate([points, np.full((20, 3), 1e6)]), (400, 300))
    assert np.allclose(far.world_from_cam, view.world_from_cam, atol=0.1)
    one = frame_extent(np.array([[1.0, 2, 3]]), (40, 30))
    assert np.isfinite(one.K).all() and np.allclose(one.world_from_cam[:3, 3], [1, 2, 2])


def test_up_is_that_of_the_cameras() -> None:
    turned = from_rotation_translation(rotation_from_rotvec(np.array([0, 0, np.pi])), np.zeros(3))
    assert np.allclose(up_direction([]), [0, -1, 0])
    assert np.allclose(up_direction([turned]), [0, 1, 0])
    assert np.allclose(up_direction([turned, np.eye(4)]), [0, -1, 0])  # they cancel out


def test_a_ray_hits_the_nearest_point_and_of_one_surface_the_best() -> None:
    points = np.array([[0.0, 0, 5], [0.003, 0, 2.01], [0.0001, 0, 2.02], [0, 0, -1], [0.5, 0, 1]])
    assert nearest_to_ray(points, np.zeros(3), np.array([0.0, 0, 3]), 0.01) == 2
    assert nearest_to_ray(points, np.array([0.0, 0, 3]), np.array([0.0, 0, 1]), 0.01) == 0
    assert nearest_to_ray(points, np.zeros(3), np.array([0.0, 1, 0]), 0.01) is None


def test_a_ray_hits_the_nearest_triangle_from_either_side() -> None:
    vertices = np.array([[-1.0, -1, 2], [1, -1, 2], [0, 1, 2], [-1, -1, 4], [1, -1, 4], [0, 1, 4]])
    faces = np.array([[3, 4, 5], [0, 1, 2], [0, 0, 1]])
    assert hit_triangle(vertices, faces, np.zeros(3), np.array([0.0, 0, 1])) == pytest.approx(2)
    assert hit_triangle(vertices, faces, np.array([0.0, 0, 6]), np.array([0.0, 0, -1])) == pytest.approx(2)
    assert hit_triangle(vertices, faces, np.zeros(3), np.array([0.0, 0, -1])) is None
    assert hit_triangle(vertices, faces, np.array([5.0, 0, 0]), np.array([0.0, 0, 1])) is None
