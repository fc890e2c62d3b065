"""Pooled tokens: unit length, and each pooling by its definition."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dune_cli.commands import index
from dune_cli.models.patch_embed import Tokens
from dune_cli.models.pooling import POOLINGS, pool


def _tokens() -> Tokens:
    torch.manual_seed(0)
    return Tokens(torch.randn(2, 8), torch.zeros(2, 0, 8), torch.randn(2, 6, 8), (2, 3))


def test_the_command_offers_all_poolings() -> None:
    assert index.POOLINGS == POOLINGS


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_have_unit_length_and_ignore_the_order_of_patches(pooling: str) -> None:
    tokens = _tokens()
    vectors = pool(tokens, pooling)
    assert vectors.shape == (2, 8) and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    turned = Tokens(tokens.cls, tokens.registers, tokens.patches.flip(1), tokens.grid)
    torch.testing.assert_close(pool(turned, pooling), vectors)


def test_each_pooling_is_what_its_name_says() -> None:
    tokens = _tokens()
    unit = F.normalize(tokens.patches, dim=-1)
    torch.testing.assert_close(pool(tokens, "cls"), F.normalize(tokens.cls, dim=-1))
    torch.testing.assert_close(pool(tokens, "mean"), F.normalize(unit.sum(1), dim=-1))
    gem = (unit.relu() ** 3).mean(1) ** (1 / 3)
    torch.testing.assert_close(pool(tokens, "gem"), F.normalize(gem, dim=-1), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="allowed: cls, mean, gem"):
        pool(tokens, "max")
