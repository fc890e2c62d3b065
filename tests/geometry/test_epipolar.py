"""Epipolar geometry: its laws in float64, and recovered poses from exact, noisy and partly wrong matches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dune_cli.geometry import epipolar, poses

K1 = np.array([[600.0, 0.0, 320.0], [0.0, 610.0, 240.0], [0.0, 0.0, 1.0]])
K2 = np.array([[1210.0, 0.0, 655.0], [0.0, 1190.0, 470.0], [0.0, 0.0, 1.0]])

seeds = st.integers(0, 10_000)


def random_pose(rng: np.random.Generator, turn: float = 0.8) -> np.ndarray:
    t, axis = rng.normal(size=(2, 3))
    R = poses.rotation_from_rotvec(axis / np.linalg.norm(axis) * rng.uniform(0, turn))
    return poses.from_rotation_translation(R, t / np.linalg.norm(t))


def project(points: np.ndarray, K: np.ndarray) -> np.ndarray:
    pixels = points @ K.T
    return pixels[:, :2] / pixels[:, 2:]


def two_views(rng: np.random.Generator, pose: np.ndarray, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Exact matches of `count` points in front of both cameras."""
    points = rng.uniform([-4, -3, 3], [4, 3, 12], (20 * count, 3))
    there = poses.transform_points(pose, points)
    visible = there[:, 2] > 0.5
    assert visible.sum() >= count
    return project(points[visible][:count], K1), project(there[visible][:count], K2)


@given(seed=seeds)
def test_matches_satisfy_the_essential_matrix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pose = random_pose(rng)
    points1, points2 = two_views(rng, pose)
    x1, x2 = epipolar.normalised_points(points1, K1), epipolar.normalised_points(points2, K2)
    assert np.abs(np.einsum("mi,ij,mj->m", x2, epipolar.essential_from_pose(pose), x1)).max() < 1e-11
    F = epipolar.fundamental_from_pose(pose, K1, K2)
    h1, h2 = (np.column_stack([p, np.ones(len(p))]) for p in (points1, points2))
    assert np.abs(np.einsum("mi,ij,mj->m", h2, F, h1)).max() < 1e-10
    assert epipolar.sampson_error_px(points1, points2, K1, K2, pose).max() < 1e-6


def test_batches_of_poses() -> None:
    rng = np.random.default_rng(0)
    batch = np.stack([random_pose(rng) for _ in range(6)]).reshape(2, 3, 4, 4)
    together = epipolar.essential_from_pose(batch)
    assert together.shape == (2, 3, 3, 3)
    np.testing.assert_array_equal(together[1, 2], epipolar.essential_from_pose(batch[1, 2]))
    points = rng.uniform(0, 600, (2, 3, 5, 2))
    errors = epipolar.sampson_error_px(points, points + 3, K1, K2, batch)
    np.testing.assert_allclose(
        errors[0, 1], epipolar.sampson_error_px(points[0, 1], points[0, 1] + 3, K1, K2, batch[0, 1])
    )
    rotation, translation = epipolar.pose_error(batch, batch[:, ::-1])
    assert rotation.shape == translation.shape == (2, 3)


def test_cross_matrix_is_the_cross_product() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 5, 3))
    np.testing.assert_allclose((poses.cross_matrix(a) @ b[..., None])[..., 0], np.cross(a, b), atol=1e-15)


def test_sampson_error_is_the_offset_shared_by_both_points() -> None:
    """Rectified views: rows that differ by d px are mended by moving each point d/2, that is d/sqrt(2) together."""
    pose = poses.from_rotation_translation(np.eye(3), np.array([-1.0, 0.0, 0.0]))
    error = epipolar.sampson_error_px(np.array([[100.0, 50.0]]), np.array([[80.0, 53.0]]), K1, K1, pose)
    np.testing.assert_allclose(error, 3 / np.sqrt(2), rtol=1e-12)


@given(angle=st.floats(0, np.pi), seed=seeds)
def test_rotation_and_direction_error_keep_their_digits(angle: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    R = poses.rotation_from_rotvec(rng.normal(size=3))
    turned = R @ poses.rotation_from_rotvec(angle * axis)
    np.testing.assert_allclose(epipolar.rotation_error(R, turned), angle, rtol=1e-9, atol=1e-15)
    side = np.cross(axis, rng.normal(size=3))
    moved = poses.rotation_from_rotvec(angle * axis) @ side
    np.testing.assert_allclose(epipolar.direction_error(side, 7 * moved), angle, rtol=1e-9, atol=1e-15)


def test_direction_without_length_counts_as_opposite() -> None:
    assert epipolar.direction_error(np.zeros(3), np.array([0.0, 0.0, 1.0])) == np.pi


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_exact_matches_give_the_exact_pose(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pose = random_pose(rng)
    points1, points2 = two_views(rng, pose)
    found = epipolar.estimate_relative_pose(points1, points2, K1, K2)
    assert found is not None
    assert max(epipolar.pose_error(found.cam2_from_cam1, pose)) < 1e-5
    assert found.inliers.all()
    assert np.linalg.norm(found.cam2_from_cam1[:3, 3]) == pytest.approx(1, abs=1e-12)
    R = found.cam2_from_cam1[:3, :3]
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_swapping_the_views_inverts_the_pose(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points1, points2 = two_views(rng, random_pose(rng))
    forward = epipolar.estimate_relative_pose(points1, points2, K1, K2)
    backward = epipolar.estimate_relative_pose(points2, points1, K2, K1)
    assert forward is not None
    assert backward is not None
    assert max(epipolar.pose_error(poses.inverse(backward.cam2_from_cam1), forward.cam2_from_cam1)) < 2e-5


@pytest.mark.parametrize("seed", range(4))
def test_noisy_matches_with_half_of_them_wrong(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pose = random_pose(rng, turn=0.2)
    points1, points2 = two_views(rng, pose, 600)
    points1 += rng.normal(size=points1.shape) * 0.4
    points2 += rng.normal(size=points2.shape) * 0.8  # the second photo has twice the resolution
    wrong = rng.permutation(600) < 300
    points2[wrong] = rng.uniform([0, 0], [1310, 940], (300, 2))
    found = epipolar.estimate_relative_pose(points1, points2, K1, K2, (1.0, 2.0), seed=seed)
    assert found is not None
    rotation, translation = np.degrees(epipolar.pose_error(found.cam2_from_cam1, pose))
    assert rotation < 0.2
    assert translation < 1.5
    assert found.inliers[~wrong].mean() > 0.9
    assert found.inliers[wrong].mean() < 0.05


@pytest.mark.parametrize("sideways", [0.4, 1.2])
def test_a_wall_has_the_pose_that_sees_all_of_it(sideways: float) -> None:
    """All matches of a plane satisfy two essential matrices; the pose of one has a part of the wall behind it."""
    rng = np.random.default_rng(0)
    wall = np.column_stack([rng.uniform([-2, -1.5], [2, 1.5], (600, 2)), np.full(600, 2.0)])
    R = poses.rotation_from_rotvec(np.array([0.05, 0.3 * sideways, 0.0]))
    pose = poses.from_rotation_translation(R, np.array([-sideways, 0.05, 0.1]))
    pixels = project(wall, K1), project(poses.transform_points(pose, wall), K2)
    points1, points2 = (p + rng.normal(0, 0.3, p.shape) for p in pixels)
    for seed in range(6):
        found = epipolar.estimate_relative_pose(points1, points2, K1, K2, 1.5, seed)
        assert found is not None and found.inliers.sum() > 550
        assert max(epipolar.pose_error(found.cam2_from_cam1, pose)) < np.radians(1)


def test_threshold_is_in_pixels() -> None:
    """Uniform noise of up to 4 px: most matches are out at 1 px and nearly all are in at 4 px."""
    rng = np.random.default_rng(5)
    pose = random_pose(rng, 0.1)
    points1, points2 = two_views(rng, pose, 500)
    points2 = points2 + rng.uniform(-4, 4, points2.shape)
    shares = []
    for threshold in (1.0, 4.0):
        found = epipolar.estimate_relative_pose(points1, points2, K1, K2, threshold)
        assert found is not None
        errors = epipolar.sampson_error_px(points1, points2, K1, K2, found.cam2_from_cam1)
        assert errors[found.inliers].max() <= threshold + 1e-9
        shares.append(found.inliers.mean())
    assert shares[0] < 0.75
    assert shares[1] > 0.97


def test_same_seed_same_pose() -> None:
    rng = np.random.default_rng(8)
    points1, points2 = two_views(rng, random_pose(rng), 200)
    points2[::2] = rng.uniform(0, 900, points2[::2].shape)
    first, second = (epipolar.estimate_relative_pose(points1, points2, K1, K2, seed=3) for _ in range(2))
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.cam2_from_cam1, second.cam2_from_cam1)
    np.testing.assert_array_equal(first.inliers, second.inliers)


@pytest.mark.parametrize("points", [np.zeros((0, 2)), np.zeros((7, 2)), np.zeros((50, 2)), np.full((9, 2), 320.0)])
def test_too_few_or_degenerate_matches_give_no_pose_or_no_crash(points: np.ndarray) -> None:
    found = epipolar.estimate_relative_pose(points, points, K1, K2)
    assert found is None or np.isfinite(found.cam2_from_cam1).all()
    if len(points) < 8:
        assert found is None


def test_random_matches_have_few_inliers() -> None:
    rng = np.random.default_rng(0)
    points1, points2 = rng.uniform(0, 600, (2, 400, 2))
    found = epipolar.estimate_relative_pose(points1, points2, K1, K1)
    assert found is None or found.inliers.mean() < 0.15


@pytest.mark.parametrize(
    ("shape1", "shape2", "threshold"), [((9, 2), (8, 2), 1.0), ((9, 3), (9, 3), 1.0), ((9, 2), (9, 2), 0.0)]
)
def test_wrong_arguments_are_refused(shape1: tuple, shape2: tuple, threshold: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        epipolar.estimate_relative_pose(np.ones(shape1), np.ones(shape2), K1, K2, threshold)
