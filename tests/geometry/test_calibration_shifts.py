"""Points and poses go with the cameras' calibration as they are said to, by comparison with solving again."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.geometry import cameras, poses, two_view
from dune_cli.geometry.absolute_pose import refine_absolute_pose
from dune_cli.geometry.bundle_adjustment import point_shifts

K = cameras.K_from_focal(500.0, 640, 480)


def _views() -> tuple[np.ndarray, np.ndarray]:
    """Two poses `world_from_cam` and points that both see."""
    rng = np.random.default_rng(0)
    second = poses.from_rotation_translation(
        poses.rotation_from_rotvec(np.array([0, -0.1, 0.02])), np.array([1.0, 0, 0])
    )
    return np.stack([np.eye(4), second]), rng.uniform((-1.5, -1, 4), (1.5, 1, 7), (40, 3))


@pytest.mark.parametrize("entry", [0, 2, 4, 5, 7, 9])
def test_points_go_where_triangulation_puts_them(entry: int) -> None:
    world_from_cam, points = _views()
    cam_from_world = np.stack([poses.inverse(pose) for pose in world_from_cam])
    pixels = np.stack([cameras.project(poses.transform_points(pose, points), K) for pose in cam_from_world])
    modes = np.zeros((2, 1, 10))
    modes[1, 0, entry] = 1e-4 if entry not in (2, 3) else 0.05
    tracks = np.stack([np.tile(np.arange(40), 2), np.repeat([0, 1], 40)], axis=1)
    told = point_shifts(points, tracks, pixels.reshape(-1, 2), np.stack([K, K]), np.zeros(2), cam_from_world, modes)[
        :, 0
    ]

    moved, K2 = world_from_cam[1].copy(), K.copy()
    moved[:3, :3] = poses.rotation_from_rotvec(modes[1, 0, 4:7]) @ moved[:3, :3]
    moved[:3, 3] += modes[1, 0, 7:]
    K2[[0, 1], [0, 1]] *= np.exp(modes[1, 0, 0])
    K2[:2, 2] += modes[1, 0, 2:4]
    again = two_view.triangulate(pixels[0], pixels[1], K, K2, poses.inverse(moved)) - points
    np.testing.assert_allclose(told, again, atol=0.1 * np.abs(again).max())


def test_a_view_s_radial_term_bends_its_rays() -> None:
    """The term that a photo's points were undistorted with is off: the same as other pixels."""
    world_from_cam, points = _views()
    cam_from_world = np.stack([poses.inverse(pose) for pose in world_from_cam])
    straight = np.stack([cameras.project(poses.transform_points(pose, points), K) for pose in cam_from_world])
    modes = np.zeros((2, 1, 10))
    modes[1, 0, 1] = 1e-3
    tracks = np.stack([np.tile(np.arange(40), 2), np.repeat([0, 1], 40)], axis=1)
    told = point_shifts(points, tracks, straight.reshape(-1, 2), np.stack([K, K]), np.zeros(2), cam_from_world, modes)[
        :, 0
    ]
    plane = (straight[1] - K[:2, 2]) / 500
    bent = straight[1] - 500 * plane * 1e-3 * (plane**2).sum(-1, keepdims=True)
    again = two_view.triangulate(straight[0], bent, K, K, cam_from_world[1]) - points
    np.testing.assert_allclose(told, again, atol=0.1 * np.abs(again).max())


def test_the_covariance_contains_points_that_move_together() -> None:
    _, points = _views()
    query = poses.from_rotation_translation(
        poses.rotation_from_rotvec(np.array([0.02, 0, 0])), np.array([0.4, 0.1, 0.3])
    )
    pixels = cameras.project(poses.transform_points(poses.inverse(query), points), K)
    shifts = 0.02 * (points * (0, 0, 1))[:, None]  # 2 % deeper all together
    plain = refine_absolute_pose(points, pixels, K, poses.inverse(query), 3.0)
    found = refine_absolute_pose(points, pixels, K, poses.inverse(query), 3.0, shifts=shifts)
    np.testing.assert_allclose(found.covariance - plain.covariance, found.from_calibration, atol=1e-15)
    moved = refine_absolute_pose(points + shifts[:, 0], pixels, K, poses.inverse(query), 3.0)
    step = poses.inverse(moved.cam_from_world)[:3, 3] - query[:3, 3]
    values, vectors = np.linalg.eigh(found.from_calibration[3:, 3:])
    assert abs(vectors[:, -1] @ step) == pytest.approx(np.linalg.norm(step), rel=0.05)
    assert np.sqrt(values[-1]) == pytest.approx(np.linalg.norm(step), rel=0.1)


def test_a_known_focal_length_that_may_be_off_counts() -> None:
    _, points = _views()
    pixels = cameras.project(points, K)
    found = refine_absolute_pose(points, pixels, K, np.eye(4), 3.0, focal_sd=0.02)
    wrong = K.copy()
    wrong[[0, 1], [0, 1]] *= 1.02
    moved = refine_absolute_pose(points, pixels, wrong, np.eye(4), 30.0)
    step = np.linalg.norm(poses.inverse(moved.cam_from_world)[:3, 3])
    assert np.sqrt(np.trace(found.from_calibration[3:, 3:])) == pytest.approx(step, rel=0.15)
