"""The letterboxed square: the whole photo, centred, black around, and a transform that finds its pixels again."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.io.preprocess import letterbox


@pytest.mark.parametrize(("height", "width"), [(90, 160), (160, 90), (100, 100), (31, 200), (901, 640), (16, 1000)])
def test_borders_are_black_and_equal(height: int, width: int) -> None:
    square = letterbox(np.full((height, width, 3), 255, np.uint8), 112)
    assert square.image.shape == (3, 112, 112)
    assert square.image.dtype == np.float32
    inside = square.image[0] > 0.5
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert inside.sum() == len(rows) * len(columns)
    assert max(len(rows), len(columns)) == 112
    assert len(rows) == max(1, round(height * 112 / max(height, width)))
    for side in (rows, columns):
        before, after = side[0], 111 - side[-1]
        assert after - before in (0, 1)
    assert square.image[:, ~inside].max(initial=0) == 0


@pytest.mark.parametrize(("height", "width"), [(240, 400), (400, 240), (77, 300)])
def test_the_transform_finds_a_spot_again(height: int, width: int) -> None:
    ys, xs = np.mgrid[:height, :width]
    for cx, cy in ((0.3 * width, 0.7 * height), (0.85 * width, 0.2 * height)):
        spot = np.exp(-((xs - cx) ** 2 + (ys - cy) ** 2) / 2 / 4**2)
        square = letterbox(np.repeat((spot * 255).astype(np.uint8)[..., None], 3, 2), 224)
        weights = square.image[0] / square.image[0].sum()
        found = (weights * np.arange(224)).sum(), (weights * np.arange(224)[:, None]).sum()
        expected = square.network_from_image @ (cx, cy, 1)
        assert np.allclose(found, expected[:2], atol=0.1)


def test_corners_of_the_photo_are_corners_of_its_area() -> None:
    square = letterbox(np.zeros((100, 200, 3), np.uint8), 100)
    corners = square.network_from_image @ np.array([[-0.5, -0.5, 1], [199.5, 99.5, 1]]).T
    assert np.allclose(corners[:2].T, [[-0.5, 24.5], [99.5, 74.5]])


def test_a_square_photo_of_the_size_is_left_as_it_is() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    square = letterbox(rgb, 56)
    assert np.array_equal(np.round(square.image * 255).astype(np.uint8), rgb.transpose(2, 0, 1))
    assert np.array_equal(square.network_from_image, np.eye(3))


def test_only_colour_bytes_are_taken() -> None:
    with pytest.raises(ValueError, match="uint8"):
        letterbox(np.zeros((10, 10, 3)), 56)
