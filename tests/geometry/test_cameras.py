"""Laws of the pinhole camera, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dune_cli.geometry import cameras

sides = st.integers(2, 4000)


@st.composite
def intrinsics(draw: st.DrawFn, batch: tuple[int, ...] = ()) -> np.ndarray:
    values = draw(arrays(np.float64, (*batch, 5), elements=st.floats(0, 1)))
    K = np.zeros((*batch, 3, 3))
    K[..., 0, 0], K[..., 1, 1] = 100 + 2000 * values[..., 0], 100 + 2000 * values[..., 1]
    K[..., 0, 2], K[..., 1, 2] = 1000 * values[..., 2], 1000 * values[..., 3]
    K[..., 0, 1] = 5 * values[..., 4]
    K[..., 2, 2] = 1
    return K


@given(st.data(), array_shapes(min_dims=0, max_dims=3, max_side=4))
def test_projecting_a_backprojected_pixel_gives_it_back(data: st.DataObject, shape: tuple[int, ...]) -> None:
    K = data.draw(intrinsics())
    pixels = data.draw(arrays(np.float64, (*shape, 2), elements=st.floats(-500, 2500)))
    depth = data.draw(arrays(np.float64, shape, elements=st.floats(0.01, 1000)))
    points = cameras.backproject(pixels, depth, K)
    np.testing.assert_allclose(points[..., 2], depth, rtol=1e-12)
    np.testing.assert_allclose(cameras.project(points, K), pixels, atol=1e-8)


@given(st.data(), array_shapes(min_dims=1, max_dims=3, max_side=3))
def test_batched_cameras_act_as_each_one_alone(data: st.DataObject, batch: tuple[int, ...]) -> None:
    K = data.draw(intrinsics(batch))
    points = data.draw(arrays(np.float64, (*batch, 4, 3), elements=st.floats(0.5, 5)))
    together = cameras.project(points, K)
    for index in np.ndindex(*batch):
        np.testing.assert_allclose(together[index], cameras.project(points[index], K[index]), rtol=1e-14)
    np.testing.assert_allclose(cameras.backproject(together, points[..., 2], K), points, rtol=1e-9)


@given(st.floats(5, 150), sides, sides)
def test_the_field_of_view_goes_round_and_spans_the_long_side(fov_deg: float, width: int, height: int) -> None:
    K = cameras.K_from_fov(fov_deg, width, height)
    assert abs(cameras.fov_deg_from_K(K, width, height) - fov_deg) < 1e-9
    edge = max(width, height)
    ends = np.array([[-0.5, (height - 1) / 2], [edge - 0.5, (height - 1) / 2]])
    if height > width:
        ends = np.array([[(width - 1) / 2, -0.5], [(width - 1) / 2, edge - 0.5]])
    a, b = cameras.backproject(ends, np.ones(2), K)
    assert abs(np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))) - fov_deg) < 1e-5


@given(st.data(), st.floats(0.1, 4), st.floats(0.1, 4))
def test_scaled_intrinsics_project_to_scaled_pixels(data: st.DataObject, scale_x: float, scale_y: float) -> None:
    K = data.draw(intrinsics())
    points = data.draw(arrays(np.float64, (6, 3), elements=st.floats(0.5, 5)))
    scaled = cameras.project(points, cameras.scale_intrinsics(K, scale_x, scale_y))
    expected = (cameras.project(points, K) + 0.5) * [scale_x, scale_y] - 0.5
    np.testing.assert_allclose(scaled, expected, rtol=1e-10, atol=1e-8)
    moved = cameras.transform_pixels(cameras.resize_transform(scale_x, scale_y), cameras.project(points, K))
    np.testing.assert_allclose(moved, expected, rtol=1e-10, atol=1e-8)


@given(st.integers(1, 12), st.integers(1, 12))
def test_the_pixel_grid_names_every_pixel_x_first(height: int, width: int) -> None:
    grid = cameras.pixel_grid(height, width)
    assert grid.shape == (height, width, 2)
    for y, x in np.ndindex(height, width):
        assert tuple(grid[y, x]) == (x, y)


def test_a_point_on_the_focal_plane_has_no_pixel() -> None:
    with np.errstate(all="raise"):
        assert not np.isfinite(cameras.project(np.array([1.0, 1.0, 0.0]), np.eye(3))).any()


@pytest.mark.parametrize("fov_deg", [0, -5, 180, 400])
def test_an_impossible_field_of_view_is_refused(fov_deg: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 180"):
        cameras.K_from_fov(fov_deg, 640, 480)
