"""Whole photos to a network and maps back: laws of the pixel transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dune_cli.io.preprocess import fit, prepare, to_photo


@pytest.mark.parametrize("size", [(40, 61), (61, 40), (33, 33)])
def test_a_small_photo_passes_untouched(size: tuple[int, int]) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    prepared = fit(rgb, 61)
    assert np.array_equal(np.rint(255 * prepared.image).astype(np.uint8), rgb.transpose(2, 0, 1))
    assert np.array_equal(prepared.network_from_image, np.eye(3))
    values = np.random.default_rng(2).random(size, np.float32)
    assert np.array_equal(to_photo(values, prepared.network_from_image, size[1], size[0]), values)


@pytest.mark.parametrize("size, seen", [((300, 451), (106, 160)), ((451, 300), (160, 106))])
def test_a_large_photo_is_reduced_whole(size: tuple[int, int], seen: tuple[int, int]) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, size[1]), size)
    prepared = fit(np.repeat(ramp[..., None], 3, 2).astype(np.uint8), 160)
    assert prepared.image.shape == (3, *seen)
    corners = np.array([[-0.5, -0.5, 1], [size[1] - 0.5, size[0] - 0.5, 1]]) @ prepared.network_from_image.T
    assert np.allclose(corners[:, :2], [[-0.5, -0.5], [seen[1] - 0.5, seen[0] - 0.5]])
    back = to_photo(prepared.image[0], prepared.network_from_image, size[1], size[0])
    assert np.abs(255 * back - ramp)[:, 3:-3].max() < 1.5


def test_back_to_the_photo_is_torchs_bilinear_resize() -> None:
    values = np.random.default_rng(3).random((21, 34), np.float32)
    scale_x, scale_y = 34 / 95, 21 / 70
    transform = np.array([[scale_x, 0, 0.5 * scale_x - 0.5], [0, scale_y, 0.5 * scale_y - 0.5], [0, 0, 1]])
    expected = F.interpolate(torch.from_numpy(values)[None, None], (70, 95), mode="bilinear", align_corners=False)
    assert np.allclose(to_photo(values, transform, 95, 70), expected[0, 0].numpy(), atol=1e-5)


def test_what_was_cropped_away_is_nan() -> None:
    prepared = prepare(np.zeros((45, 70, 3), np.uint8), None, 16)
    assert prepared.image.shape == (3, 32, 64)
    values = np.random.default_rng(4).random((32, 64), np.float32)
    back = to_photo(values, prepared.network_from_image, 70, 45)
    left, top = -prepared.network_from_image[:2, 2].astype(int)
    assert np.array_equal(back[top : top + 32, left : left + 64], values)
    assert np.isfinite(back).sum() == values.size


def test_maps_of_one_row_or_column() -> None:
    assert np.array_equal(to_photo(np.full((1, 1), 2.5, np.float32), np.eye(3), 1, 1), [[2.5]])
    wide = np.array([[0.25, 0, -0.375], [0, 1, 0], [0, 0, 1]])
    assert np.array_equal(to_photo(np.full((1, 1), 2.5, np.float32), wide, 4, 1), np.full((1, 4), 2.5))
