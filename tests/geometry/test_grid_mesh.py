"""Grid triangulation: what is joined, what is cut, and which way the triangles face."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dune_cli.geometry import cameras
from dune_cli.geometry.depth_maps import grid_triangles, used_vertices


@given(st.integers(2, 12), st.integers(2, 12))
def test_a_smooth_grid_is_covered_once_by_two_triangles_a_square(height: int, width: int) -> None:
    triangles = grid_triangles(np.full((height, width), 2.0), np.ones((height, width), dtype=bool))
    assert len(triangles) == 2 * (height - 1) * (width - 1)
    corner = np.stack([triangles % width, triangles // width], axis=-1)
    a, b = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    areas = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / 2
    np.testing.assert_allclose(np.abs(areas), 0.5)
    assert (areas < 0).all()  # y points down: counter-clockwise for the eye
    assert len(np.unique(np.sort(triangles, axis=1), axis=0)) == len(triangles)


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_no_triangle_crosses_an_edge_or_touches_an_invalid_pixel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    depth = np.where(rng.random((9, 11)) < 0.5, 1.0, 1.5) + rng.normal(0, 0.005, (9, 11))
    valid = rng.random((9, 11)) < 0.8
    depth[~valid & (rng.random((9, 11)) < 0.5)] = np.nan
    triangles = grid_triangles(depth, valid)
    assert valid.ravel()[triangles].all()
    z = depth.ravel()[triangles]
    assert (z.max(1) - z.min(1) <= 0.04 * z.min(1)).all()


def test_a_step_is_cut_and_a_slope_is_not() -> None:
    valid = np.ones((4, 6), dtype=bool)
    step = np.where(np.arange(6) < 3, 1.0, 1.2) * np.ones((4, 1))
    assert len(grid_triangles(step, valid)) == 2 * 3 * 4
    slope = 1 + 0.03 * np.arange(6) * np.ones((4, 1))
    assert len(grid_triangles(slope, valid)) == 2 * 3 * 5


def test_a_missing_corner_leaves_the_other_triangle() -> None:
    for missing in np.ndindex(2, 2):
        valid = np.ones((2, 2), dtype=bool)
        valid[missing] = False
        triangles = grid_triangles(np.ones((2, 2)), valid)
        assert len(triangles) == 1 and set(triangles[0]) == set(np.flatnonzero(valid))


def test_triangles_face_the_camera() -> None:
    depth = np.random.default_rng(0).uniform(2, 2.02, (5, 5))
    points = cameras.backproject(cameras.pixel_grid(5, 5), depth, cameras.K_from_fov(60, 5, 5)).reshape(-1, 3)
    triangles = grid_triangles(depth, np.ones((5, 5), dtype=bool))
    a, b, c = (points[triangles[:, i]] for i in range(3))
    assert ((np.cross(b - a, c - a) * a).sum(1) < 0).all()


def test_used_vertices_are_renumbered() -> None:
    kept, triangles = used_vertices(np.array([[7, 3, 9], [9, 3, 1]]))
    np.testing.assert_array_equal(kept, [1, 3, 7, 9])
    np.testing.assert_array_equal(kept[triangles], [[7, 3, 9], [9, 3, 1]])
    empty, none = used_vertices(np.zeros((0, 3), dtype=int))
    assert len(empty) == len(none) == 0
