"""Triangulation, two-view bundle adjustment and the degeneracy tests, on exact and noisy correspondences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dune_cli.geometry import cameras, poses, two_view

K1 = np.array([[500.0, 0, 319.5], [0, 510.0, 239.5], [0, 0, 1]])
K2 = np.array([[620.0, 0, 300.0], [0, 620.0, 250.0], [0, 0, 1]])


def scene(seed: int, count: int = 200, rotvec=(0.05, -0.2, 0.1), centre=(1.0, 0.1, -0.2)):
    """Points in front of both cameras, their pixels in each, and `cam2_from_cam1` with unit baseline."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([-2, -2, 4], [2, 2, 9], (count, 3))
    world_from_2 = poses.from_rotation_translation(poses.rotation_from_rotvec(np.array(rotvec)), np.array(centre))
    cam2_from_cam1 = poses.inverse(world_from_2)
    cam2_from_cam1[:3, 3] /= np.linalg.norm(centre)
    points /= np.linalg.norm(centre)
    pixels1 = cameras.project(points, K1)
    return points, pixels1, cameras.project(poses.transform_points(cam2_from_cam1, points), K2), cam2_from_cam1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.tuples(*[st.floats(-0.3, 0.3)] * 3), st.tuples(*[st.floats(0.2, 1)] * 3))
def test_triangulation_gives_exact_points_back(seed: int, rotvec: tuple, centre: tuple) -> None:
    points, pixels1, pixels2, pose = scene(seed, 30, rotvec, centre)
    found = two_view.triangulate(pixels1, pixels2, K1, K2, pose)
    wide = two_view.parallax_angles(points, pose) > np.radians(0.5)
    np.testing.assert_allclose(found[wide], points[wide], rtol=1e-7, atol=1e-7)
    in_front = poses.transform_points(pose, points)[:, 2] > 0
    errors = two_view.reprojection_errors(points, pixels1, pixels2, K1, K2, pose)
    assert (errors[in_front] < 1e-9).all() and np.isinf(errors[~in_front]).all()


def test_the_parallax_angle_of_a_point_straight_ahead() -> None:
    pose = poses.inverse(poses.from_rotation_translation(np.eye(3), np.array([1.0, 0, 0])))
    angles = two_view.parallax_angles(np.array([[0, 0, 1.0], [0, 0, 100.0], [5.0, 0, 0]]), pose)
    np.testing.assert_allclose(angles, [np.pi / 4, np.arctan(0.01), 0], atol=1e-12)


def test_bundle_adjustment_brings_a_perturbed_pose_back_and_drops_what_does_not_fit() -> None:
    points, pixels1, pixels2, pose = scene(1)
    wrong = pixels2.copy()
    wrong[:20] += np.random.default_rng(2).uniform(15, 60, (20, 2))
    start = pose.copy()
    start[:3, :3] = poses.rotation_from_rotvec(np.array([0.002, -0.003, 0.002])) @ pose[:3, :3]
    start[:3, 3] = poses.rotation_from_rotvec(np.array([0.01, 0.01, -0.01])) @ pose[:3, 3]
    result = two_view.refine(pixels1, wrong, K1, K2, start, threshold_px=2.0)
    assert poses.rotation_angle(result.cam2_from_cam1[:3, :3] @ pose[:3, :3].T) < 1e-5
    assert poses.vector_angle(result.cam2_from_cam1[:3, 3], pose[:3, 3]) < 1e-4
    assert abs(np.linalg.norm(result.cam2_from_cam1[:3, 3]) - 1) < 1e-12
    assert result.valid[20:].all() and result.valid[:20].sum() <= 2
    np.testing.assert_allclose(result.points_cam1[20:], points[20:], rtol=1e-3)
    assert np.isnan(result.points_cam1[~result.valid]).all()


def test_bundle_adjustment_finds_the_same_optimum_from_anywhere_near_and_repeats_to_the_bit() -> None:
    _, pixels1, pixels2, pose = scene(3, 500)
    rng = np.random.default_rng(4)
    noisy = [p + rng.normal(0, 0.5, p.shape) for p in (pixels1, pixels2)]
    start = pose.copy()
    start[:3, :3] = poses.rotation_from_rotvec(np.array([0.004, 0.004, 0])) @ pose[:3, :3]
    first, second = (two_view.refine(*noisy, K1, K2, start, 3.0) for _ in range(2))
    from_truth = two_view.refine(*noisy, K1, K2, pose, 3.0)
    np.testing.assert_allclose(first.cam2_from_cam1, from_truth.cam2_from_cam1, atol=1e-6)
    assert np.degrees(poses.rotation_angle(first.cam2_from_cam1[:3, :3] @ pose[:3, :3].T)) < 0.25
    assert first.reprojection_error_px < 0.8
    np.testing.assert_array_equal(first.cam2_from_cam1, second.cam2_from_cam1)
    np.testing.assert_array_equal(first.points_cam1, second.points_cam1)


def test_skew_is_honoured() -> None:
    points, pixels1, _, pose = scene(5)
    skewed = K2.copy()
    skewed[0, 1] = 12.0
    pixels2 = cameras.project(poses.transform_points(pose, points), skewed)
    result = two_view.refine(pixels1, pixels2, K1, skewed, pose, 1.0)
    assert result.valid.all() and result.reprojection_error_px < 1e-6
    np.testing.assert_allclose(result.cam2_from_cam1, pose, atol=1e-8)


def test_a_rotation_alone_is_recognised_among_outliers() -> None:
    _, pixels1, _, _ = scene(6)
    rotation = poses.rotation_from_rotvec(np.array([0.02, 0.15, -0.05]))
    pixels2 = cameras.project(cameras.backproject(pixels1, np.ones(len(pixels1)), K1) @ rotation.T, K2)
    pixels2[:50] += np.random.default_rng(0).uniform(20, 80, (50, 2))
    found, residuals = two_view.rotation_only(pixels1, pixels2, K1, K2)
    assert poses.rotation_angle(found @ rotation.T) < 1e-4
    assert (residuals[50:] < 0.1).all() and (residuals[:50] > 10).all()


@pytest.mark.parametrize("true_factor", [0.6, 1.0, 1.7])
def test_a_rotation_is_recognised_with_a_wrong_focal(true_factor: float) -> None:
    _, pixels1, _, _ = scene(7)
    guess = [K @ np.diag([1 / true_factor, 1 / true_factor, 1]) for K in (K1, K2)]
    rotation = poses.rotation_from_rotvec(np.array([0.02, 0.2, -0.05]))
    pixels2 = cameras.project(cameras.backproject(pixels1, np.ones(len(pixels1)), K1) @ rotation.T, K2)
    factor, residuals = two_view.rotation_only_any_focal(pixels1, pixels2, *guess)
    assert abs(np.log(factor / true_factor)) < 0.06
    assert np.median(residuals) < 1


def test_a_real_motion_is_no_rotation_at_any_focal() -> None:
    _, pixels1, pixels2, _ = scene(8)
    assert np.median(two_view.rotation_only(pixels1, pixels2, K1, K2)[1]) > 5
    assert np.median(two_view.rotation_only_any_focal(pixels1, pixels2, K1, K2)[1]) > 5
