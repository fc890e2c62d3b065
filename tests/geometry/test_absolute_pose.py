"""PnP on exact, noisy and mostly wrong correspondences."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dune_cli.geometry import cameras, poses
from dune_cli.geometry.absolute_pose import estimate_absolute_pose

K = np.array([[500.0, 3.0, 319.5], [0, 540.0, 239.5], [0, 0, 1]])


def view(seed: int, rotvec, centre, scale: float = 1.0, count: int = 400):
    """World points, their pixels, and the true `cam_from_world`; the points lie in front of the camera."""
    rng = np.random.default_rng(seed)
    world_from_cam = poses.from_rotation_translation(poses.rotation_from_rotvec(np.array(rotvec)), np.array(centre))
    points_cam = rng.uniform([-2, -2, 3], [2, 2, 9], (count, 3))
    points = poses.transform_points(world_from_cam, points_cam) * scale
    world_from_cam[:3, 3] *= scale
    return points, cameras.project(points_cam, K), poses.inverse(world_from_cam)


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.floats(-1.5, 1.5)] * 3), st.tuples(*[st.floats(-5, 5)] * 3), st.sampled_from([1e-3, 1.0, 1e3]))
def test_exact_points_give_the_exact_pose_at_any_scale(rotvec: tuple, centre: tuple, scale: float) -> None:
    points, pixels, truth = view(0, rotvec, centre, scale)
    found = estimate_absolute_pose(points, pixels, K, 2.0)
    assert found is not None and found.inliers.all()
    np.testing.assert_allclose(found.cam_from_world[:3, :3], truth[:3, :3], atol=1e-6)
    np.testing.assert_allclose(found.cam_from_world[:3, 3] / scale, truth[:3, 3] / scale, atol=1e-5)
    assert found.reprojection_error_px < 1e-3


def test_two_thirds_of_wrong_points_and_noise_are_survived_and_a_seed_repeats() -> None:
    points, pixels, truth = view(1, (0.1, 0.4, -0.2), (1.0, 0.5, -2.0), count=900)
    rng = np.random.default_rng(3)
    wrong = np.arange(900) < 600
    pixels = pixels + rng.normal(0, 0.5, pixels.shape)
    pixels[wrong] = rng.uniform(0, 640, (600, 2))
    first, second = (estimate_absolute_pose(points, pixels, K, 3.0, seed=5) for _ in range(2))
    assert first is not None and second is not None
    assert np.degrees(poses.rotation_angle(first.cam_from_world[:3, :3] @ truth[:3, :3].T)) < 0.1
    assert first.inliers[~wrong].mean() > 0.98 and first.inliers[wrong].mean() < 0.03
    np.testing.assert_array_equal(first.cam_from_world, second.cam_from_world)


def test_too_few_or_senseless_points_give_no_pose() -> None:
    points, pixels, _ = view(2, (0, 0, 0), (0, 0, 0))
    assert estimate_absolute_pose(points[:5], pixels[:5], K, 2.0) is None
    assert estimate_absolute_pose(np.ones((50, 3)), pixels[:50], K, 2.0) is None
