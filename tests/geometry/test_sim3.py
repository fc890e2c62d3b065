"""Similarities: fitted exactly, invariant, and robust to wrong points."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.geometry import poses
from dune_cli.geometry.sim3 import (
    move_poses,
    rigid_part,
    robust_similarity,
    scale_of,
    similarity_from_points,
    similarity_from_poses,
)

RNG = np.random.default_rng(0)


def random_similarity(rng: np.random.Generator, scale: float) -> np.ndarray:
    pose = poses.from_rotation_translation(poses.rotation_from_rotvec(rng.normal(size=3)), rng.normal(size=3))
    pose[:3, :3] *= scale
    return pose


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_exact_points_give_the_similarity_back_in_batches(scale: float) -> None:
    truth = np.stack([random_similarity(RNG, scale) for _ in range(4)])
    points = RNG.normal(size=(4, 10, 3))
    moved = poses.transform_points(truth, points)
    found = similarity_from_points(moved, points, RNG.uniform(0.1, 1, (4, 10)))
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-9 * scale)
    np.testing.assert_allclose(scale_of(found), scale)


def test_a_mirror_image_gives_a_rotation_and_no_scale_keeps_lengths() -> None:
    points = RNG.normal(size=(20, 3))
    found = similarity_from_points(points * [1, 1, -1], points)
    assert np.linalg.det(found[:3, :3]) > 0
    rigid = similarity_from_points(3 * points, points, with_scale=False)
    rigid[:3, 3] -= 2 * points.mean(0)
    np.testing.assert_allclose(rigid, np.eye(4), atol=1e-9)


def test_worked_by_hand() -> None:
    """Two units apart becomes six; a quarter turn about z; the middle goes from (1, 0, 0) to (5, 5, 0)."""
    points = np.array([[0.0, 0, 0], [2, 0, 0], [1, 1, 0], [1, -1, 0]])
    moved = np.array([[5.0, 2, 0], [5, 8, 0], [2, 5, 0], [8, 5, 0]])
    found = similarity_from_points(moved, points)
    np.testing.assert_allclose(found, [[0, -3, 0, 5], [3, 0, 0, 2], [0, 0, 3, 0], [0, 0, 0, 1]], atol=1e-12)


def test_cameras_move_with_the_world() -> None:
    new_from_old, old_from_cam = random_similarity(RNG, 4.0), random_similarity(RNG, 1.0)
    point_cam = np.array([0.3, -0.2, 2.0])
    moved = move_poses(new_from_old, old_from_cam)
    expected = poses.transform_points(new_from_old, poses.transform_points(old_from_cam, point_cam))
    np.testing.assert_allclose(poses.transform_points(moved, 4 * point_cam), expected)
    np.testing.assert_allclose(rigid_part(moved), moved)


def test_poses_tell_the_similarity_although_some_are_wrong() -> None:
    rng = np.random.default_rng(4)
    old_from_cam = np.stack([random_similarity(rng, 1.0) for _ in range(9)])
    truth = random_similarity(rng, 3.0)
    moved = move_poses(truth, old_from_cam)
    moved[2, :3, 3] += 100
    moved[5, :3, :3] = moved[4, :3, :3]
    np.testing.assert_allclose(similarity_from_poses(moved, old_from_cam), truth, atol=0.1)
    one = similarity_from_poses(moved[:1], old_from_cam[:1])
    assert scale_of(one) == pytest.approx(1)


@pytest.mark.parametrize("wrong", [0.2, 0.5])
def test_wrong_points_do_not_move_the_fit(wrong: float) -> None:
    rng = np.random.default_rng(3)
    truth = np.stack([random_similarity(rng, scale) for scale in (0.5, 2.0, 9.0)])
    points = rng.normal([0.0, 0.0, 4.0], 1.0, (3, 200, 3))
    moved = poses.transform_points(truth, points)
    sizes = scale_of(truth)[:, None] * np.linalg.norm(points, axis=-1)
    moved += 0.01 * sizes[..., None] * rng.normal(size=moved.shape)
    bad = rng.random((3, 200)) < wrong
    moved[bad] += rng.normal(size=(bad.sum(), 3)) * 5 * sizes[bad][:, None]
    found = robust_similarity(moved, points, np.ones((3, 200)), sizes, 0.1)
    assert np.abs(scale_of(found.a_from_b) / scale_of(truth) - 1).max() < 0.01
    turn = rigid_part(found.a_from_b)[:, :3, :3].transpose(0, 2, 1) @ rigid_part(truth)[:, :3, :3]
    assert np.degrees(poses.rotation_angle(turn)).max() < 0.6
    np.testing.assert_allclose(found.inlier_share, 1 - bad.mean(1), atol=0.05)
