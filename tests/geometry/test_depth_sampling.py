"""Depth between pixels: exact on planes, nothing at edges, holes and outside."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dune_cli.geometry import cameras
from dune_cli.geometry.depth_maps import sample_depth

K = cameras.K_from_fov(60, 40, 30)


def plane(normal: list[float], distance: float) -> np.ndarray:
    """(30, 40) depth of the plane normal . X = distance."""
    rays = cameras.backproject(cameras.pixel_grid(30, 40), np.ones((30, 40)), K)
    return distance / (rays @ np.array(normal))


@settings(max_examples=30, deadline=None)
@given(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4), st.floats(0.5, 20), st.integers(0, 1000))
def test_exact_on_planes(x: float, y: float, distance: float, seed: int) -> None:
    depth = plane([x, y, 1.0], distance)
    pixels = np.random.default_rng(seed).uniform([0, 0], [39, 29], (50, 2))
    rays = cameras.backproject(pixels, np.ones(50), K)
    np.testing.assert_allclose(sample_depth(depth, pixels), distance / (rays @ np.array([x, y, 1])), rtol=1e-12)


def test_pixels_themselves_and_the_border() -> None:
    depth = plane([0.3, 0.1, 1.0], 2.0)
    np.testing.assert_allclose(sample_depth(depth, cameras.pixel_grid(30, 40).reshape(-1, 2)), depth.ravel())
    edge = sample_depth(depth, np.array([[-0.4, 10.0], [39.4, 10.0], [5.0, -0.4], [5.0, 29.4]]))
    np.testing.assert_allclose(edge, [depth[10, 0], depth[10, 39], depth[0, 5], depth[29, 5]])
    outside = np.array([[-0.6, 10], [39.6, 10], [5, -0.6], [5, 29.6], [np.nan, 3]])
    assert np.isnan(sample_depth(depth, outside)).all()


def test_no_surface_across_an_edge() -> None:
    depth = np.full((30, 40), 2.0)
    depth[:, 20:] = 4.0
    pixels = np.stack([np.linspace(17, 22, 51), np.full(51, 12.3)], -1)
    z = sample_depth(depth, pixels)
    assert set(np.unique(z[np.isfinite(z)])) == {2.0, 4.0}
    between = (pixels[:, 0] > 19.001) & (pixels[:, 0] < 19.999)
    assert np.isnan(z[between]).all() and np.isfinite(z[~between & (pixels[:, 0] < 19)]).all()
    assert np.isfinite(sample_depth(np.where(depth == 4, 2.05, 2.0), pixels)).all()  # no edge: 2.5 %


@pytest.mark.parametrize("hole", [0.0, np.nan, np.inf, -1.0])
def test_holes(hole: float) -> None:
    depth = plane([0.2, 0.0, 1.0], 3.0)
    true = depth.copy()
    depth[10, 20] = hole
    near, far = sample_depth(depth, np.array([[20.2, 10.1], [20.8, 10.0]]))
    assert np.isnan(near)
    assert far == pytest.approx(true[10, 21], rel=0.01)  # the nearest pixel has a depth


def test_a_single_row_and_pixel() -> None:
    np.testing.assert_allclose(sample_depth(np.array([[2.0, 2.05]]), np.array([[0.5, 0.0]])), [2 / (1 / 2 + 1 / 2.05)])
    np.testing.assert_allclose(sample_depth(np.array([[3.0]]), np.array([[0.0, 0.0]])), [3.0])
    assert sample_depth(np.ones((4, 4)), np.zeros((0, 2))).shape == (0,)
