"""Position embeddings for any grid, by matrices as they are exported and by F.interpolate."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from dune_cli.models.patch_embed import bicubic_weights, pad_to_patches, resample


@pytest.mark.parametrize("policy", ["offset", "antialias"])
@pytest.mark.parametrize("grid", [(5, 9), (12, 7), (8, 8), (1, 20), (8, 3)])
def test_matrices_resample_as_interpolate_does(grid: tuple[int, int], policy: str) -> None:
    positions = torch.randn(1, 1 + 8 * 8, 6, generator=torch.Generator().manual_seed(0))
    expected = resample(positions, grid, policy)
    with mock.patch("torch.compiler.is_exporting", return_value=True):
        found = resample(positions, grid, policy)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("antialias", [False, True])
def test_weights_sum_to_one(antialias: bool) -> None:
    weights = bicubic_weights(5, 9, antialias)
    assert weights.shape == (5, 9)
    torch.testing.assert_close(weights.sum(1), torch.ones(5))


def test_whole_patches_are_not_padded() -> None:
    images = torch.rand(1, 3, 28, 14)
    assert pad_to_patches(images, 14) is images
