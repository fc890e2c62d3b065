"""People's tokens attend to each other and to the image's cells (spec 4: the layers that both heads share).

Parameter names are those of the published files, so that their state dicts load as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class PersonTransformerConfig:
    """Sizes: `width` of the people's tokens, `context` of the image's cells, `inner` = heads x channels a head."""

    width: int
    context: int
    inner: int
    heads: int
    hidden: int
    depth: int


class PersonTransformer(nn.Module):
    """Pre-norm layers of self-attention, cross-attention and MLP, each added to its input; no norm after the last."""

    def __init__(self, config: PersonTransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_layer(config) for _ in range(config.depth))

    def forward(self, people: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """people (P, D) and context (N, C) of ONE image -> (P, D). The context is taken as it is, without a norm."""
        for attend, look, think in self.layers:
            people = people + attend(people)
            people = people + look(people, context)
            people = people + think(people)
        return people


def mlp(inputs: int, hidden: int, out: int) -> nn.Sequential:
    """Linear, ReLU, linear: every `mlp_*` of the heads."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, out))


def _layer(config: PersonTransformerConfig) -> nn.ModuleList:
    width = config.width
    return nn.ModuleList(
        [
            PreNorm(width, SelfAttention(width, config.inner, config.heads)),
            PreNorm(width, CrossAttention(width, config.context, config.inner, config.heads)),
            PreNorm(width, FeedForward(width, config.hidden)),
        ]
    )


class PreNorm(nn.Module):
    """LayerNorm of the first argument, then `fn`."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, 1e-5)
        self.fn = fn

    def forward(self, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """x (P, D), and what else `fn` takes."""
        return self.fn(self.norm(x), *others)


class SelfAttention(nn.Module):
    """Attention among the people of one image; heads are contiguous channels, q, k, v in this order, no bias."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (P, D) -> (P, D)."""
        return self.to_out(_attend(*self.to_qkv(x).chunk(3, -1), self.heads))


class CrossAttention(nn.Module):
    """Attention of people to the cells of their image."""

    def __init__(self, width: int, context: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(context, 2 * inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, width))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """x (P, D), context (N, C) -> (P, D)."""
        return self.to_out(_attend(self.to_q(x), *self.to_kv(context).chunk(2, -1), self.heads))


class FeedForward(nn.Module):
    """Linear, exact GELU, linear; the published list has dropouts between, hence the name `net.3`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (P, D) -> (P, D)."""
        return self.net(x)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """Softmax attention of q (P, heads·d) over k, v (N, heads·d), scale 1/sqrt(d)."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(0, 1) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
