"""Views about one centre: the pose that all of their matches agree on, and its covariance."""

from __future__ import annotations

import numpy as np

from dune_cli.geometry.cameras import project
from dune_cli.geometry.central_pose import refine_central_pose
from dune_cli.geometry.poses import from_rotation_translation, inverse, rotation_from_rotvec, transform_points

K = np.array([[100.0, 0, 79.5], [0, 100, 79.5], [0, 0, 1]])
TURNS = [rotation_from_rotvec(np.array([0, angle, 0])) for angle in (0, np.pi / 2, np.pi)]
WORLD_FROM_RIG = from_rotation_translation(rotation_from_rotvec(np.array([0.1, -0.4, 0.2])), np.array([1.0, 2, 3]))
NOISE_PX = 0.5


def matches(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points around the rig, their noisy pixels, and the view of each; one in ten is wrong."""
    points, pixels, view = [], [], np.repeat(np.arange(len(TURNS)), 60)
    for turn in TURNS:
        own = np.stack([rng.uniform(-2, 2, 60), rng.uniform(-2, 2, 60), rng.uniform(3, 8, 60)], -1)
        pixels.append(project(own, K) + rng.normal(0, NOISE_PX, (60, 2)))
        points.append(transform_points(WORLD_FROM_RIG, own @ turn))
    wrong = rng.permutation(len(view))[: len(view) // 10]
    pixels = np.concatenate(pixels)
    pixels[wrong] += rng.uniform(20, 40, (len(wrong), 2))
    return np.concatenate(points), pixels, view


def test_the_pose_of_all_views_is_as_far_off_as_its_covariance_says() -> None:
    rng, squares = np.random.default_rng(0), []
    off = from_rotation_translation(rotation_from_rotvec(np.array([0.02, 0.01, -0.02])), np.array([0.05, -0.05, 0.02]))
    for _ in range(60):
        points, pixels, view = matches(rng)
        found = refine_central_pose(points, pixels, view, TURNS, K, off @ inverse(WORLD_FROM_RIG), 5.0)
        assert found is not None and np.count_nonzero(found.errors_px < 5) == 162
        world_from_rig = inverse(found.cam_from_world)
        turn = WORLD_FROM_RIG[:3, :3] @ world_from_rig[:3, :3].T
        rotvec = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]) / 2
        error = np.concatenate([rotvec, WORLD_FROM_RIG[:3, 3] - world_from_rig[:3, 3]])
        squares.append(error @ np.linalg.solve(found.covariance, error))
    assert 4.5 < np.mean(squares) < 8  # a chi-square of 6 degrees of freedom


def test_too_few_points_give_no_pose() -> None:
    points, pixels, view = matches(np.random.default_rng(1))
    few = slice(0, 4)
    assert refine_central_pose(points[few], pixels[few], view[few], TURNS, K, inverse(WORLD_FROM_RIG), 5.0) is None
