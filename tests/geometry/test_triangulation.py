"""Points of one view by its matches with posed others: exact in exact pixels, deaf to wrong matches."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.geometry import cameras, poses
from dune_cli.geometry.triangulation import ViewObservations, triangulate_with_known_poses

K = cameras.K_from_fov(60, 640, 480)
CAMS = [
    poses.from_rotation_translation(poses.rotation_from_rotvec([0, 0.03 * i, 0]), [-0.4 * i, 0.05 * i, 0.0])
    for i in range(5)
]  # cam_from_world


@pytest.fixture
def points() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([rng.uniform(-1.5, 1.5, 60), rng.uniform(-1, 1, 60), rng.uniform(4, 7, 60)], -1)


def seen(points: np.ndarray, view: int) -> np.ndarray:
    return cameras.project(poses.transform_points(CAMS[view], points), K)


def rays(points: np.ndarray, pixel_size: float = 1.0) -> list[ViewObservations]:
    return [ViewObservations(np.arange(len(points)), seen(points, i), K, CAMS[i], pixel_size) for i in range(1, 5)]


def test_exact_pixels_give_exact_points(points: np.ndarray) -> None:
    found = triangulate_with_known_poses(seen(points, 0), K, CAMS[0], 1.0, rays(points), 2.0)
    np.testing.assert_array_equal(found.rows, np.arange(60))
    np.testing.assert_allclose(found.points_world, points, atol=1e-6)
    assert (found.observations == 5).all()


def test_wrong_matches_are_outvoted(points: np.ndarray) -> None:
    others = rays(points)
    wrong = np.random.default_rng(1).choice(60, 30, replace=False)
    others[2].pixels[wrong] += 60
    found = triangulate_with_known_poses(seen(points, 0), K, CAMS[0], 1.0, others, 2.0)
    np.testing.assert_allclose(found.points_world, points[found.rows], atol=1e-6)
    assert len(found.rows) == 60 and (found.observations[np.isin(found.rows, wrong)] == 4).all()


def test_the_view_itself_must_agree(points: np.ndarray) -> None:
    """Where others agree on a point that the view sees elsewhere, it is no point of the view."""
    pixels = seen(points, 0)
    pixels[:10] += 50
    found = triangulate_with_known_poses(pixels, K, CAMS[0], 1.0, rays(points), 2.0)
    np.testing.assert_array_equal(found.rows, np.arange(10, 60))


def test_narrow_rays_and_single_views_give_none(points: np.ndarray) -> None:
    near = CAMS[0].copy()
    near[0, 3] -= 0.02  # 0.3 degrees at 4 units
    narrow = [ViewObservations(np.arange(60), cameras.project(poses.transform_points(near, points), K), K, near, 1.0)]
    assert len(triangulate_with_known_poses(seen(points, 0), K, CAMS[0], 1.0, narrow, 2.0).rows) == 0
    assert triangulate_with_known_poses(seen(points, 0), K, CAMS[0], 1.0, [], 2.0).points_world.shape == (0, 3)


def test_thresholds_count_in_each_views_own_unit(points: np.ndarray) -> None:
    others = rays(points, pixel_size=4.0)
    noise = np.random.default_rng(2).uniform(-5, 5, (4, 60, 2))
    noisy = [ViewObservations(o.rows, o.pixels + n, o.K, o.cam_from_world, o.pixel_size) for o, n in zip(others, noise)]
    coarse = triangulate_with_known_poses(seen(points, 0), K, CAMS[0], 4.0, noisy, 2.0)
    assert len(coarse.rows) >= 55
    np.testing.assert_allclose(coarse.points_world, points[coarse.rows], rtol=0.2, atol=0.2)
