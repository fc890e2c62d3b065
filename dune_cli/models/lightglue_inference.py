"""LightGlue's answer with fewer and larger matrix products than its layers take one by one.

Both images' points go through a layer's products together; queries, keys and values have their own rows; the projection
after an attention is one product with the layer that follows it; a rotary position is a complex factor. Rows are filled
up to multiples of `STEP`, since a library prepares its product anew for every shape. The answers are those of
`LightGlue.match` up to float32's rounding (tests/models/test_lightglue.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli.models.cpu_products import attention, linear
from dune_cli.models.lightglue import (
    CrossBlock,
    LightGlue,
    SelfBlock,
    assignment_of,
    least_confidence,
    mutual,
)

STEP = 128


@dataclass(frozen=True)
class PackedAttention:
    """A block's weights: `project` to queries, keys and values (self) or keys and values (cross), each with all heads'
    rows together; `ffn`: the network after it, whose first layer takes the points beside the attention's message."""

    project: tuple[torch.Tensor, torch.Tensor]
    first: tuple[torch.Tensor, torch.Tensor]
    norm: nn.LayerNorm
    last: tuple[torch.Tensor, torch.Tensor]

    def update(self, x: torch.Tensor, message: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(linear(torch.cat([x, message], 1), *self.first))
        return x + linear(F.gelu(hidden), *self.last)


@dataclass
class Points:
    """Points of one image that are still in use: the first `count` of `rows` rows; `index` of each among all,
    `turns` (rows, 1, width of a head / 2): their positions as complex numbers."""

    count: int
    rows: int
    index: torch.Tensor
    turns: torch.Tensor


class PackedLightGlue:
    """A `LightGlue` in float32 on the CPU, for inference. Its later training does not reach this copy."""

    def __init__(self, glue: LightGlue) -> None:
        self.glue, self.config = glue, glue.config
        with torch.no_grad():
            self.layers = [(_pack_self(layer.self_attn), _pack_cross(layer.cross_attn)) for layer in glue.transformers]

    def input_proj(self, descriptors: torch.Tensor) -> torch.Tensor:
        """As of `LightGlue`."""
        projection = self.glue.input_proj
        if isinstance(projection, nn.Identity):
            return descriptors
        return linear(descriptors, projection.weight, projection.bias)

    def match(
        self,
        embedded0: torch.Tensor,
        embedded1: torch.Tensor,
        positions0: torch.Tensor,
        positions1: torch.Tensor,
        threshold: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As of `LightGlue`. Call it without gradients."""
        glue, config = self.glue, self.config
        total = len(embedded0) + len(embedded1)
        points = [self._points(positions) for positions in (positions0, positions1)]
        x = torch.cat([_filled(values, of.rows) for values, of in zip((embedded0, embedded1), points)])
        for layer, head in zip(range(config.layers), glue.log_assignment):
            x = self._layer(x, points, *self.layers[layer])
            if layer == config.layers - 1:
                break
            unsure = [None, None]
            if glue.depth_confidence > 0:
                confidence = glue.token_confidence[layer](x)
                unsure = [c <= least_confidence(layer, config.layers) for c in _of_images(confidence, points)]
                if 1 - int(unsure[0].sum() + unsure[1].sum()) / total > glue.depth_confidence:
                    break
            if config.prune_below > 0:
                x = self._prune(x, points, head.keeps(x, config.prune_below), unsure)
        if min(of.count for of in points) == 0:
            return points[0].index[:0], points[1].index[:0], x.new_zeros(0)
        projected = _of_images(linear(x, head.final_proj.weight, head.final_proj.bias), points)
        z0, z1 = _of_images(head.matchability(x)[:, 0], points)
        pairs = assignment_of(linear(*projected) / config.width**0.5, z0, z1).pairs
        return mutual(pairs, points[0].index, points[1].index, threshold)

    def _points(self, positions: torch.Tensor) -> Points:
        count = len(positions)
        rows = _rows(count)
        angles = F.linear(positions.float(), self.glue.posenc.Wr.weight.float())
        turns = torch.polar(torch.ones_like(angles), angles)[:, None]
        return Points(count, rows, torch.arange(count, device=positions.device), _filled(turns, rows))

    def _layer(
        self, x: torch.Tensor, points: list[Points], within: PackedAttention, between: PackedAttention
    ) -> torch.Tensor:
        heads, rows = self.config.heads, points[0].rows
        q, k, v = (linear(x, *within.project).unflatten(1, (3, heads, -1))).permute(1, 2, 0, 3)
        turns = torch.cat([of.turns for of in points]).transpose(0, 1)
        q, k = (_turned(part, turns) for part in (q, k))
        parts = [part.split([of.rows for of in points], 1) for part in (q, k, v)]
        messages = [attention(*of_image, of.count) for of_image, of in zip(zip(*parts), points)]
        x = within.update(x, torch.cat(messages))
        k, v = (linear(x, *between.project).unflatten(1, (2, heads, -1))).permute(1, 2, 0, 3)
        (k0, k1), (v0, v1) = ((part[:, :rows], part[:, rows:]) for part in (k, v))
        messages = [attention(k0, k1, v1, points[1].count), attention(k1, k0, v0, points[0].count)]
        return between.update(x, torch.cat(messages))

    def _prune(
        self, x: torch.Tensor, points: list[Points], keeps: torch.Tensor, unsure: list[torch.Tensor | None]
    ) -> torch.Tensor:
        """The points that stay, as of `LightGlue`; `points` are changed in place."""
        left = []
        for values, keep, also, of in zip(_of_images(x, points), _of_images(keeps, points), unsure, points):
            index = (keep if also is None else keep | also).nonzero()[:, 0]
            turns = of.turns[index]
            of.index, of.count, of.rows = of.index[index], len(index), _rows(len(index))
            of.turns = _filled(turns, of.rows)
            left.append(_filled(values[index], of.rows))
        return torch.cat(left)


def _pack_self(block: SelfBlock) -> PackedAttention:
    def sorted_rows(values: torch.Tensor) -> torch.Tensor:
        # a row for each head, channel, and one of query, key and value
        return values.unflatten(0, (block.heads, -1, 3)).movedim(2, 0).flatten(0, 2).contiguous()

    project = sorted_rows(block.Wqkv.weight), sorted_rows(block.Wqkv.bias)
    return PackedAttention(project, *_pack_ffn(block.ffn, block.out_proj))


def _pack_cross(block: CrossBlock) -> PackedAttention:
    project = (
        torch.cat([block.to_qk.weight, block.to_v.weight]),
        torch.cat([block.to_qk.bias, block.to_v.bias]),
    )
    return PackedAttention(project, *_pack_ffn(block.ffn, block.to_out))


def _pack_ffn(
    ffn: nn.Sequential, out: nn.Linear
) -> tuple[tuple[torch.Tensor, torch.Tensor], nn.LayerNorm, tuple[torch.Tensor, torch.Tensor]]:
    first, norm, _, last = ffn
    of_points, of_message = first.weight.double().split(out.out_features, 1)
    weight = torch.cat([of_points, of_message @ out.weight.double()], 1).float()
    bias = (first.bias.double() + of_message @ out.bias.double()).float()
    return (weight, bias), norm, (last.weight, last.bias)


def _turned(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Neighbouring channels of x (heads, N, D) as complex numbers, times `turns` (1, N, D / 2)."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)


def _rows(count: int) -> int:
    return -(-count // STEP) * STEP


def _filled(values: torch.Tensor, rows: int) -> torch.Tensor:
    """values (N, ...) with zeros up to `rows`."""
    return torch.cat([values, values.new_zeros(rows - len(values), *values.shape[1:])])


def _of_images(values: torch.Tensor, points: list[Points]) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of each image, without those that fill up."""
    first, second = points
    return values[: first.count], values[first.rows : first.rows + second.count]
