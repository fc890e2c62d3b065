"""Rectification and dense depth on a ray-cast scene: every arrangement of two cameras, against the true depth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dune_cli.geometry import cameras, poses
from dune_cli.mvs import stereo
from support import synthetic_scenes

WIDTH, HEIGHT = 240, 180
K = cameras.K_from_fov(60, WIDTH, HEIGHT)
PORTRAIT = cameras.K_from_fov(60, HEIGHT, WIDTH)
MOVES = {
    "right": ((0.02, -0.05, 0.01), (0.4, 0.02, 0.03)),
    "left": ((0.02, 0.05, 0.01), (-0.4, 0.02, 0.03)),
    "up": ((-0.05, 0.02, 0.03), (0.02, -0.4, 0.0)),
    "down": ((0.05, 0.0, 0.02), (0.0, 0.3, 0.02)),
    "rolled": ((0.0, 0.0, 0.5), (0.4, -0.1, 0.0)),
}


@settings(max_examples=50, deadline=None)
@given(
    st.tuples(*[st.floats(-0.2, 0.2)] * 3),
    st.floats(0, 2 * np.pi),
    st.floats(-0.3, 0.3),
    st.floats(400, 900),
)
def test_rectified_rows_are_epipolar_lines_and_disparity_is_depth(
    rotvec: tuple, direction: float, forward: float, focal_px: float
) -> None:
    K1, K2 = cameras.K_from_focal(500, 480, 360), cameras.K_from_focal(focal_px, 400, 400)
    centre = np.array([np.cos(direction), np.sin(direction), forward])
    pose = poses.inverse(poses.from_rotation_translation(poses.rotation_from_rotvec(np.array(rotvec)), centre))
    points = np.random.default_rng(0).uniform([-1, -1, 5], [1, 1, 12], (40, 3))
    rect = stereo.rectify(K1, K2, pose, (480, 360), (400, 400), points)
    if isinstance(rect, str):
        return
    one = cameras.transform_pixels(rect.homography(0, K1), cameras.project(points, K1))
    two = cameras.transform_pixels(rect.homography(1, K2), cameras.project(poses.transform_points(pose, points), K2))
    np.testing.assert_allclose(one[:, 1], two[:, 1], atol=1e-7)
    depth = points @ rect.rect_from_cam[0, 2]
    disparity = rect.focal_px * rect.baseline / depth + rect.offset_px
    np.testing.assert_allclose(one[:, 0] - two[:, 0], disparity, atol=1e-7)
    searched = (disparity >= rect.min_disparity_px) & (disparity <= rect.min_disparity_px + rect.num_disparities)
    assert searched.mean() > 0.9


@pytest.mark.parametrize("portrait", [False, True])
@pytest.mark.parametrize("move", list(MOVES))
def test_depth_is_right_wherever_the_second_camera_stands(move: str, portrait: bool) -> None:
    camera, (width, height) = (PORTRAIT, (HEIGHT, WIDTH)) if portrait else (K, (WIDTH, HEIGHT))
    world_from_2 = synthetic_scenes.pose(*MOVES[move])
    first, depth = synthetic_scenes.render(camera, np.eye(4), width, height)
    second, depth2 = synthetic_scenes.render(camera, world_from_2, width, height)
    cam2_from_cam1 = poses.inverse(world_from_2)
    points = cameras.backproject(cameras.pixel_grid(height, width), depth, camera)[::7, ::7].reshape(-1, 3)
    points = points[np.isfinite(points).all(1)]
    rect = stereo.rectify(camera, camera, cam2_from_cam1, (width, height), (width, height), points)
    assert not isinstance(rect, str), rect
    dense = stereo.dense_depth(first, second, camera, camera, rect)
    assert dense.depth.shape == dense.confidence.shape == (height, width)
    visible = synthetic_scenes.visible_in(depth, depth2, camera, cam2_from_cam1)
    known = np.isfinite(dense.depth)
    assert (known & visible).sum() > 0.9 * visible.sum()
    error_px = (rect.focal_px * rect.baseline * np.abs(1 / dense.depth - 1 / depth))[known & visible]
    assert np.median(error_px) < 0.1 and np.percentile(error_px, 90) < 0.3
    assert (dense.confidence[~known] == 0).all() and (dense.confidence[known] > 0).all()
    assert dense.confidence.max() <= 1


def test_a_large_pair_is_matched_at_a_size_that_fits() -> None:
    points = np.random.default_rng(0).uniform([-1, -1, 4], [1, 1, 12], (40, 3))
    pose = poses.inverse(synthetic_scenes.pose((0, 0, 0), (1, 0, 0)))
    large = cameras.K_from_fov(60, 6000, 4000)
    rect = stereo.rectify(large, large, pose, (6000, 4000), (6000, 4000), points)
    assert not isinstance(rect, str)
    assert rect.width * rect.height * rect.num_disparities < 1.2 * stereo.MAX_CELLS


def test_a_motion_half_forward_keeps_the_part_far_from_the_epipole() -> None:
    world_from_2 = synthetic_scenes.pose((0, 0, 0), (0.3, 0.0, 0.4))
    first, depth = synthetic_scenes.render(K, np.eye(4), WIDTH, HEIGHT)
    second, depth2 = synthetic_scenes.render(K, world_from_2, WIDTH, HEIGHT)
    pose = poses.inverse(world_from_2)
    points = cameras.backproject(cameras.pixel_grid(HEIGHT, WIDTH), depth, K)[::7, ::7].reshape(-1, 3)
    rect = stereo.rectify(K, K, pose, (WIDTH, HEIGHT), (WIDTH, HEIGHT), points[np.isfinite(points).all(1)])
    assert not isinstance(rect, str), rect
    dense = stereo.dense_depth(first, second, K, K, rect)
    both = np.isfinite(dense.depth) & synthetic_scenes.visible_in(depth, depth2, K, pose)
    assert both.mean() > 0.3
    assert np.median(np.abs(dense.depth / depth - 1)[both]) < 0.02
    assert not np.isfinite(dense.depth[:, -WIDTH // 8 :]).any()  # the epipole lies to the right


@pytest.mark.parametrize(
    ("rotvec", "centre", "reason"),
    [
        ((0, 0, 0), (0, 0, 1), "line of sight"),
        ((0, 0, 0), (0.2, 0, 0.9), "too few matched points"),
        ((0, np.pi / 2, 0), (0, 0, 0.5), "points into the photos"),
        ((0, 0, 0), (40, 0, 0), "overlap too little"),
    ],
)
def test_a_pair_that_cannot_be_rectified_says_why(rotvec: tuple, centre: tuple, reason: str) -> None:
    points = np.random.default_rng(0).uniform([-1, -1, 5], [1, 1, 12], (40, 3))
    pose = poses.inverse(synthetic_scenes.pose(rotvec, centre))
    answer = stereo.rectify(K, K, pose, (WIDTH, HEIGHT), (WIDTH, HEIGHT), points)
    assert isinstance(answer, str) and reason in answer
