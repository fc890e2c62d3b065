"""Filling depth maps by a network: what it recovers, what it refuses, and that measured depth stays what it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dune_cli.geometry.cameras import K_from_fov, backproject, pixel_grid, project
from dune_cli.io.meshes import Frustum
from dune_cli.mvs.depth_fill import (
    FILLED_CONFIDENCE,
    DepthNetwork,
    fill_depth,
    fill_map,
    fill_views,
    surface_maps,
)
from dune_cli.mvs.fusion import fuse, fuse_measured_first
from dune_cli.sfm.scene import PointMap, SparsePoints, View

WIDTH, HEIGHT = 96, 72
K = K_from_fov(60, WIDTH, HEIGHT)
POSE = np.eye(4)
NO_POINTS = np.zeros((0, 2)), np.zeros(0)


def room() -> np.ndarray:
    """(H, W) a floor and a wall behind a box."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    depth = np.minimum(4.0 + 0.01 * x, 2.5 / np.maximum((y - 36) / 40, 0.05))
    depth[20:55, 30:60] = 2.0
    return depth


def predicted(depth: np.ndarray) -> np.ndarray:
    """As a network has it: another factor and shift, and a slow drift over the photo."""
    drift = 1 + 0.15 * np.sin(np.linspace(0, 3, WIDTH))
    return 1 / (0.4 * drift / depth + 0.05)


def holes() -> np.ndarray:
    """(H, W) bool: a part of the wall, of the box, and the seam between them."""
    hole = np.zeros((HEIGHT, WIDTH), dtype=bool)
    hole[5:40, 45:80] = True
    return hole


def point_map(depth: np.ndarray, valid: np.ndarray, world_from_cam: np.ndarray = POSE) -> PointMap:
    points = backproject(pixel_grid(*depth.shape), depth, K) @ world_from_cam[:3, :3].T + world_from_cam[:3, 3]
    points = np.where(valid[..., None], points, np.nan).astype(np.float32)
    confidence = np.where(valid, np.float32(0.9), np.float32(0))
    return PointMap(points, confidence, valid, np.full((*depth.shape, 3), 90, np.uint8), np.eye(3))


def test_a_hole_is_filled_to_its_border_and_its_edges_stay_sharp() -> None:
    depth, hole = room(), holes()
    result = fill_depth(np.where(hole, np.nan, depth), predicted(depth), *NO_POINTS)
    assert result is not None
    error = np.abs(result.depth / depth - 1)
    assert np.median(error[hole]) < 0.01 and np.percentile(error[hole], 90) < 0.05
    # the box's edge inside the hole: nobody interpolates between box and wall
    assert np.abs(result.depth[28, 52] / 2.0 - 1) < 0.05 and np.abs(result.depth[28, 66] / depth[28, 66] - 1) < 0.05


def test_sparse_points_in_a_hole_correct_the_network() -> None:
    depth, hole = room(), np.zeros((HEIGHT, WIDTH), dtype=bool)
    hole[:, 55:] = True
    wrong = predicted(depth) * np.where(hole, 1.25, 1)  # the network is off where nothing was measured
    measured = np.where(hole, np.nan, depth)
    pixels = pixel_grid(HEIGHT, WIDTH)[4::8, 58::6].reshape(-1, 2).astype(float)
    x, y = pixels.astype(int).T
    with_points = fill_depth(measured, wrong, pixels, depth[y, x])
    without = fill_depth(measured, wrong, *NO_POINTS)
    assert with_points is not None and without is not None
    errors = [np.abs(one.depth / depth - 1)[hole].mean() for one in (with_points, without)]
    assert errors[0] < 0.5 * errors[1]


def test_expected_errors_are_larger_where_the_network_is_wrong() -> None:
    depth, hole = room(), holes()
    noise = np.random.default_rng(0).normal(0, 0.3, depth.shape)
    noise[:, : WIDTH // 2] = 0
    result = fill_depth(np.where(hole, np.nan, depth), predicted(depth) * np.exp(noise), *NO_POINTS)
    assert result is not None
    right, left = result.expected_error[:, 60:], result.expected_error[:, :36]
    assert np.median(right) > 0.1 and np.median(left) < 0.05


def test_a_network_that_says_the_opposite_fills_nothing_and_the_sky_stays_empty() -> None:
    depth, hole = room(), holes()
    measured = np.where(hole, np.nan, depth)
    assert fill_depth(measured, 8 - predicted(depth), *NO_POINTS) is None
    assert fill_depth(np.where(np.arange(WIDTH) < 2, depth, np.nan), predicted(depth), *NO_POINTS) is None

    def no_sky(rgb: np.ndarray, K: np.ndarray) -> np.ndarray:
        seen = predicted(depth)
        seen[:15] = np.nan
        return seen

    filled = fill_map(point_map(depth, ~hole), K, np.eye(4), np.zeros((0, 3)), DepthNetwork(no_sky, ()))
    assert filled.filled is not None and filled.filled[20:30].any() and not filled.filled[:15].any()


@pytest.fixture
def two_views() -> tuple[list[View], SparsePoints]:
    """Two cameras side by side before one wall; the first has a hole. The second one's map is whole."""
    depth, right = np.full((HEIGHT, WIDTH), 3.0), np.eye(4)
    right[0, 3] = 0.2
    views = [
        View("a.png", WIDTH, HEIGHT, K, "given", np.eye(4), dense=point_map(depth, ~holes())),
        View("b.png", WIDTH, HEIGHT, K, "given", right, dense=point_map(depth, np.ones_like(holes()), right)),
    ]
    points = backproject(pixel_grid(HEIGHT, WIDTH)[10::20, 30:60:10].reshape(-1, 2), 3.0, K)
    pixels = [project(points, K), project(points - right[:3, 3], K)]
    index = np.arange(len(points))
    colors = np.zeros((len(points), 3), np.uint8)
    return views, SparsePoints(points, colors, np.ones(len(points)), tuple((index, one) for one in pixels))


def network_of(depth: float) -> DepthNetwork:
    """Right but for the hole, where it has `depth`."""

    def predict(rgb: np.ndarray, K: np.ndarray) -> np.ndarray:
        wall = np.linspace(2.9, 3.1, WIDTH) * np.ones((HEIGHT, 1))
        return np.where(holes(), depth, wall)

    return DepthNetwork(predict, ())


def test_filled_pixels_are_marked_and_measured_ones_untouched(two_views: tuple[list[View], SparsePoints]) -> None:
    views, sparse = two_views
    one, whole = fill_views(views, sparse, network_of(3.0))
    before = views[0].dense
    assert one is not None and whole is not None and before is not None and one.filled is not None
    assert one.filled[holes()].mean() > 0.9 and not one.filled[~holes()].any()
    assert not whole.measured[~views[1].dense.valid].any() and np.array_equal(one.measured, before.valid)
    assert (one.confidence[one.filled] < FILLED_CONFIDENCE).all() and (one.confidence[one.measured] > 0.2).all()
    assert np.array_equal(one.points_world[before.valid], before.points_world[before.valid])
    # what the other view measured is not made a second time
    unseen, _ = surface_maps([replace(v, dense=d) for v, d in zip(views, (one, whole))], sparse)
    assert unseen is not None and unseen.filled is not None and unseen.filled.mean() < 0.1 * one.filled.mean()


def test_filled_points_in_front_of_what_another_view_sees_are_dropped(
    two_views: tuple[list[View], SparsePoints],
) -> None:
    views, sparse = two_views
    near = point_map(np.where(holes(), 2.0, 3.0), np.ones_like(holes()))
    marked = replace(near, filled=holes(), confidence=np.where(holes(), np.float32(0.1), near.confidence))
    unseen, _ = surface_maps([replace(views[0], dense=marked), views[1]], sparse)
    assert unseen is not None and unseen.filled is not None
    assert unseen.filled.sum() < 0.2 * holes().sum()


def test_the_cloud_has_the_measured_points_first_and_unchanged() -> None:
    depth = np.full((HEIGHT, WIDTH), 3.0)
    whole = point_map(depth, np.ones_like(holes()))
    marked = replace(whole, filled=holes(), confidence=np.where(holes(), np.float32(0.1), whole.confidence))
    cameras = [Frustum(K, np.eye(4), WIDTH, HEIGHT, "a.png")]
    cloud = fuse_measured_first([marked], cameras)
    measured = fuse([replace(whole, valid=~holes())], cameras)
    assert np.array_equal(cloud.points_world[: len(measured.points_world)], measured.points_world)
    assert (cloud.confidence[len(measured.points_world) :] < FILLED_CONFIDENCE).all()
    assert len(cloud.points_world) > len(measured.points_world)
