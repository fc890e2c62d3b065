"""A depth edge goes to the edge of the photo beside it; planes and unknown depth stay."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.mvs.depth_edges import EDGE_STEP, sharpened

HEIGHT, WIDTH, EDGE = 60, 80, 40


def _photo(rng: np.random.Generator) -> np.ndarray:
    """A bright object to the left of column 40, before a dark background, with noise."""
    columns = np.arange(WIDTH) < EDGE
    rgb = np.where(columns[None, :, None], [190, 160, 60], [50, 60, 90]) + rng.normal(0, 4, (HEIGHT, WIDTH, 3))
    return rgb.clip(0, 255).astype(np.uint8)


def _inverse_depth(edge: int) -> np.ndarray:
    return np.broadcast_to(np.where(np.arange(WIDTH) < edge, 0.5, 0.25), (HEIGHT, WIDTH)).copy()


@pytest.mark.parametrize("rim_px", [-3, 3])
def test_a_rim_of_half_a_window_goes_to_the_side_of_its_colour(rim_px: int) -> None:
    result = sharpened(_inverse_depth(EDGE + rim_px), _photo(np.random.default_rng(0)))
    assert np.isclose(result, _inverse_depth(EDGE)).mean() > 0.995


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_unit_of_length_does_not_matter(scale: float) -> None:
    photo = _photo(np.random.default_rng(0))
    one, scaled = (sharpened(factor * _inverse_depth(EDGE + 2), photo) for factor in (1.0, scale))
    np.testing.assert_allclose(scaled, scale * one, rtol=1e-5)


def test_without_an_edge_nothing_changes() -> None:
    rng = np.random.default_rng(1)
    slope = 0.5 + 0.3 * EDGE_STEP * np.linspace(0, WIDTH / 11, WIDTH) * np.ones((HEIGHT, 1)) * 0.5
    np.testing.assert_array_equal(sharpened(slope, _photo(rng)), slope)


def test_values_come_from_the_window_and_unknown_depth_is_left_alone() -> None:
    rng = np.random.default_rng(2)
    values = rng.choice([0.2, 0.5, 0.9], (HEIGHT, WIDTH))
    values[20:24, 30:34] = np.nan
    values[0, 0] = 0
    result = sharpened(values, _photo(rng))
    assert np.isnan(result[20:24, 30:34]).all() and result[0, 0] == 0
    known = np.isfinite(result) & (result > 0)
    np.testing.assert_allclose(np.abs(result[known][:, None] - [0.2, 0.5, 0.9]).min(1), 0, atol=1e-6)
    near = np.zeros_like(known)
    near[15:29, 25:39] = True  # windows that hold an unknown one
    np.testing.assert_array_equal(result[near & known], values[near & known])
