"""The focal length of exact, noisy and partly wrong point maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dune_cli.geometry import cameras
from dune_cli.geometry.cameras import focal_from_point_map


def point_map(focal_px: float, seed: int, height: int = 30, width: int = 40):
    K = cameras.K_from_focal(focal_px, width, height)
    depth = np.random.default_rng(seed).uniform(1, 10, (height, width))
    pixels = cameras.pixel_grid(height, width)
    return cameras.backproject(pixels, depth, K), pixels, K[:2, 2]


@settings(max_examples=40, deadline=None)
@given(st.floats(10, 5000), st.integers(0, 1000), st.floats(0.01, 100))
def test_an_exact_point_map_gives_its_focal_at_any_scale(focal_px: float, seed: int, scale: float) -> None:
    points, pixels, centre = point_map(focal_px, seed)
    found = focal_from_point_map(scale * points, pixels, centre, np.ones(points.shape[:2], dtype=bool))
    assert found is not None and abs(found / focal_px - 1) < 1e-6


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4])
def test_wrong_points_move_it_little(share: float) -> None:
    points, pixels, centre = point_map(50.0, 1)
    rng = np.random.default_rng(2)
    points += rng.normal(0, 0.01, points.shape)
    wrong = rng.random(points.shape[:2]) < share
    points[wrong] = rng.uniform([-9, -9, 1], [9, 9, 10], (wrong.sum(), 3))
    found = focal_from_point_map(points, pixels, centre, np.ones(points.shape[:2], dtype=bool))
    assert found is not None and abs(found / 50 - 1) < 0.02


def test_points_behind_invalid_or_not_finite_are_left_out() -> None:
    points, pixels, centre = point_map(50.0, 3)
    points[:5] *= -1
    points[5, :, 0] = np.nan
    valid = np.ones(points.shape[:2], dtype=bool)
    valid[6:9] = False
    points[6:9] = 7.0
    found = focal_from_point_map(points, pixels, centre, valid)
    assert found is not None and abs(found / 50 - 1) < 1e-6


def test_no_focal_where_the_points_give_none() -> None:
    points, pixels, centre = point_map(50.0, 4)
    none = np.zeros(points.shape[:2], dtype=bool)
    assert focal_from_point_map(points, pixels, centre, none) is None
    mirrored = points * [-1, -1, 1]
    assert focal_from_point_map(mirrored, pixels, centre, ~none) is None
    assert focal_from_point_map(points * [0, 0, 1], pixels, centre, ~none) is None
