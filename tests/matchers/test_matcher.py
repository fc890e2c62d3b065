"""Working sizes: photos are resized without bias, and points come back to the original pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dune_cli.matchers import matcher


def blob(width: int, height: int, x: float, y: float, sigma: float) -> np.ndarray:
    """A grey picture of one bright spot at (x, y)."""
    ys, xs = np.mgrid[:height, :width]
    grey = 250 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * sigma**2))
    return np.repeat(np.round(grey).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("size_px", [60, 97, 120, 241, 400])
@pytest.mark.parametrize("multiple", [1, 32])
def test_a_spot_keeps_its_place(size_px: int, multiple: int) -> None:
    resized = matcher.resize(blob(120, 90, 70.3, 40.6, 6), size_px, multiple)
    weights = resized.rgb[..., 0].astype(np.float64)
    ys, xs = np.mgrid[: weights.shape[0], : weights.shape[1]]
    centre = np.array([(weights * xs).sum(), (weights * ys).sum()]) / weights.sum()
    np.testing.assert_allclose(resized.to_original(centre), [70.3, 40.6], atol=0.06)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(20, 300),
    height=st.integers(20, 300),
    size_px=st.integers(32, 400),
    multiple=st.sampled_from([1, 8, 32]),
)
def test_sides_and_corners(width: int, height: int, size_px: int, multiple: int) -> None:
    resized = matcher.resize(np.zeros((height, width, 3), np.uint8), size_px, multiple)
    new_height, new_width = resized.rgb.shape[:2]
    assert new_height % multiple == new_width % multiple == 0
    assert abs(max(new_height, new_width) - size_px) <= multiple / 2
    corners = resized.to_original(np.array([[-0.5, -0.5], [new_width - 0.5, new_height - 0.5]]))
    np.testing.assert_allclose(corners, [[-0.5, -0.5], [width - 0.5, height - 0.5]], atol=1e-9)
    assert resized.pixel_size == pytest.approx(np.sqrt(width * height / (new_width * new_height)))


def test_a_photo_of_the_working_size_is_untouched() -> None:
    rgb = blob(64, 32, 10, 10, 3)
    resized = matcher.resize(rgb, 64)
    assert resized.original_per_pixel == (1.0, 1.0)
    np.testing.assert_array_equal(resized.rgb, rgb)


@pytest.mark.parametrize("rgb", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((0, 9, 3), np.uint8)])
def test_what_is_no_photo_is_refused(rgb: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be"):
        matcher.resize(rgb, 64)
