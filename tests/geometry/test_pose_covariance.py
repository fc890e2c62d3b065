"""Laws of the last step of PnP: the pose comes back, its covariance is what repeated noise shows, and it shrinks."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.geometry import cameras, poses
from dune_cli.geometry.absolute_pose import RefinedPose, pose_jacobian, refine_absolute_pose

K = cameras.K_from_fov(60, 640, 480)
CAM_FROM_WORLD = poses.from_rotation_translation(poses.rotation_from_rotvec([0.1, 0.4, -0.2]), [0.3, -0.2, 1.0])
WORLD_FROM_CAM = poses.inverse(CAM_FROM_WORLD)


def scene(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points (count, 3) in the world and their exact pixels."""
    rng = np.random.default_rng(seed)
    points_cam = np.stack([rng.uniform(-2, 2, count), rng.uniform(-1.5, 1.5, count), rng.uniform(4, 9, count)], -1)
    return poses.transform_points(WORLD_FROM_CAM, points_cam), cameras.project(points_cam, K)


def nearby(pose: np.ndarray) -> np.ndarray:
    return pose @ poses.from_rotation_translation(poses.rotation_from_rotvec([0.01, -0.02, 0.01]), [0.05, 0.02, -0.04])


def error(found: RefinedPose) -> np.ndarray:
    """(6,) as the covariance means it."""
    world_from_cam = poses.inverse(found.cam_from_world)
    turned = poses.rotvec_from_rotation(WORLD_FROM_CAM[:3, :3] @ world_from_cam[:3, :3].T)
    return np.concatenate([turned, WORLD_FROM_CAM[:3, 3] - world_from_cam[:3, 3]])


def test_exact_pixels_give_the_exact_pose() -> None:
    points, pixels = scene(40)
    found = refine_absolute_pose(points, pixels, K, nearby(CAM_FROM_WORLD), 3.0)
    np.testing.assert_allclose(found.cam_from_world, CAM_FROM_WORLD, atol=1e-6)
    assert found.errors_px.max() < 1e-3 and found.sigma_px == pytest.approx(0.3)


def test_an_unknown_focal_length_is_found() -> None:
    points, pixels = scene(60)
    guess = np.diag([0.8, 0.8, 1.0]) @ K
    guess[:2, 2] = K[:2, 2]
    found = refine_absolute_pose(points, pixels, guess, CAM_FROM_WORLD, 3.0, focal_unknown=True)
    np.testing.assert_allclose(found.K, K, rtol=1e-6)
    np.testing.assert_allclose(found.cam_from_world, CAM_FROM_WORLD, atol=1e-6)
    known = refine_absolute_pose(points, pixels, K, CAM_FROM_WORLD, 3.0)
    assert np.trace(found.covariance) > np.trace(known.covariance)  # what is not known costs


def test_the_jacobian_is_the_derivative() -> None:
    points, pixels = scene(20)
    jacobian = pose_jacobian(points, K, CAM_FROM_WORLD)
    step = 1e-6
    for axis in range(6):
        change = step * np.eye(6)[axis]
        moved = WORLD_FROM_CAM.copy()
        moved[:3, :3] = poses.rotation_from_rotvec(change[:3]) @ moved[:3, :3]
        moved[:3, 3] += change[3:]
        there = cameras.project(poses.transform_points(poses.inverse(moved), points), K)
        np.testing.assert_allclose((there - pixels) / step, jacobian[..., axis], atol=1e-2)


@pytest.mark.parametrize("focal_unknown", [False, True])
def test_the_covariance_is_that_of_repeated_noise(focal_unknown: bool) -> None:
    points, pixels = scene(50)
    rng = np.random.default_rng(1)
    errors, covariances = [], []
    for _ in range(200):
        noisy = pixels + rng.normal(0, 0.7, pixels.shape)
        found = refine_absolute_pose(points, noisy, K, CAM_FROM_WORLD, 4.0, focal_unknown)
        errors.append(error(found))
        covariances.append(found.covariance)
    told = np.mean(covariances, axis=0)
    ratio = np.std(errors, axis=0) / np.sqrt(np.diag(told))
    assert (ratio > 0.75).all() and (ratio < 1.3).all()
    # and its correlations: what is told explains the errors in all directions alike
    whitened = np.array(errors) @ np.linalg.inv(np.linalg.cholesky(told)).T
    assert np.linalg.eigvalsh(np.cov(whitened.T)).min() > 0.7 and np.linalg.eigvalsh(np.cov(whitened.T)).max() < 1.6


def test_more_points_less_doubt() -> None:
    rng = np.random.default_rng(2)
    spreads = []
    for count in (20, 80, 320):
        points, pixels = scene(count)
        found = refine_absolute_pose(points, pixels + rng.normal(0, 0.5, pixels.shape), K, CAM_FROM_WORLD, 3.0)
        spreads.append(np.linalg.norm(found.position_std))
        assert found.rotation_std_deg < 1
    assert spreads[0] > 1.5 * spreads[1] > 2 * spreads[2]


def test_lengths_carry_over() -> None:
    points, pixels = scene(40)
    noisy = pixels + np.random.default_rng(3).normal(0, 0.5, pixels.shape)
    near = refine_absolute_pose(points, noisy, K, CAM_FROM_WORLD, 3.0)
    far_pose = CAM_FROM_WORLD.copy()
    far_pose[:3, 3] *= 1000
    far = refine_absolute_pose(1000 * points, noisy, K, far_pose, 3.0)
    np.testing.assert_allclose(far.position_std, 1000 * near.position_std, rtol=1e-4)
    np.testing.assert_allclose(far.rotation_std_deg, near.rotation_std_deg, rtol=1e-4)


def test_what_does_not_determine_a_pose() -> None:
    points, pixels = scene(5)
    assert refine_absolute_pose(points, pixels, K, CAM_FROM_WORLD, 3.0) is None
    line = WORLD_FROM_CAM[:3, 3] + np.linspace(4, 6, 20)[:, None] * WORLD_FROM_CAM[:3, 2] + [[0.1, 0, 0]]
    on_line = cameras.project(poses.transform_points(CAM_FROM_WORLD, line), K)
    assert refine_absolute_pose(line, on_line, K, CAM_FROM_WORLD, 3.0) is None
    same = np.repeat(points[:1], 20, axis=0)
    assert refine_absolute_pose(same, np.repeat(pixels[:1], 20, axis=0), K, CAM_FROM_WORLD, 3.0) is None
