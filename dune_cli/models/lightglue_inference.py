"""LightGlue's answer on a CPU, with fewer and larger matrix products than its layers take one by one.

Both images' points go through a layer's products together, in pieces that several threads take; queries, keys and
values have their own rows; the projection after an attention is one product with the layer that follows it; a rotary
position is a complex factor; logits between the images are computed once for both directions. Rows are filled up to
multiples of `STEP`, since a library prepares its product anew for every shape. In float32 the answers are those of
`LightGlue.match` up to rounding (tests/models/test_lightglue.py). In bfloat16 97 to 98 % of the matches are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import e, log2
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli.models.cpu_products import attend, attend_both, linear
from dune_cli.models.lightglue import (
    CrossBlock,
    LightGlue,
    SelfBlock,
    assignment_of,
    least_confidence,
    mutual,
)
from dune_cli.runtime import torch_threads

STEP = 128
BLOCK = 1024  # rows of a thread's piece of work: always the same, as results may depend on it


# as `runtime.torch_threads` gives it
ThreadsMap: TypeAlias = Callable[[Callable[[Any], None], Any], list[None]]


@dataclass(frozen=True)
class PackedAttention:
    """The weights of a block of `heads`.

    `project`: to queries and keys (self) or, in float32, to what is both (cross), all heads' rows together, so that
    their products are logits of base 2. `values`: to values, without bias, which `first` has, since shares sum up to
    one. `first`, `norm`, `last`: the network after it, whose first layer takes the points beside the message.
    """

    heads: int
    project: tuple[torch.Tensor, torch.Tensor]
    values: torch.Tensor
    first: tuple[torch.Tensor, torch.Tensor]
    norm: nn.LayerNorm
    last: tuple[torch.Tensor, torch.Tensor]

    def update(self, x: torch.Tensor, joined: torch.Tensor) -> torch.Tensor:
        """x and, in the type of the products, x beside the message (N, 2 x width) -> x of the next block."""
        hidden = F.gelu(self.norm(linear(joined, *self.first).float()))
        return x + linear(hidden.to(joined.dtype), *self.last)


@dataclass
class Points:
    """Points of one image that are still in use: the first `count` of `rows` rows; `index` of each among all,
    `turns` (rows, width of a head / 2): their positions as complex numbers."""

    count: int
    rows: int
    index: torch.Tensor
    turns: torch.Tensor


class LayerWork:
    """One layer's work, in pieces that threads take: blocks of BLOCK rows, heads of an image, heads of both.

    x (N, width): the points of both images, which `update` changes in place.
    """

    def __init__(
        self, x: torch.Tensor, points: list[Points], within: PackedAttention, between: PackedAttention
    ) -> None:
        heads, count, width = within.heads, *x.shape
        dtype = within.values.dtype
        self.x, self.within, self.between = x, within, between
        self.counts = [of.count for of in points]
        self.images = [slice(0, points[0].rows), slice(points[0].rows, count)]
        self.turns = torch.cat([of.turns for of in points])
        self.joined = torch.empty(count, 2 * width, dtype=dtype)  # points beside messages
        self.messages = self.joined[:, width:].unflatten(1, (heads, -1))
        self.values = torch.empty(heads, width // heads, count, dtype=dtype)
        self.q, self.k = torch.empty(2, heads, count, width // heads, dtype=dtype)
        self.keys = torch.empty(heads, count, width // heads)  # between the images

    def update(self, run: ThreadsMap) -> None:
        """Attention within the images, then between them."""
        blocks = [slice(start, start + BLOCK) for start in range(0, len(self.x), BLOCK)]
        heads = range(self.within.heads)
        run(self._project_within, blocks)
        run(self._attend_within, [(head, image) for image in (0, 1) for head in heads])
        run(self._project_between, blocks)
        run(self._attend_between, heads)
        run(partial(self._move, self.between), blocks)

    def _project_within(self, rows: slice) -> None:
        within = self.within
        qk = linear(self._project(rows, within), *within.project).float().unflatten(1, (2, within.heads, -1, 2))
        turned = torch.view_as_real(torch.view_as_complex(qk) * self.turns[rows, None, None]).flatten(-2)
        self.q[:, rows], self.k[:, rows] = turned.permute(1, 2, 0, 3)

    def _project_between(self, rows: slice) -> None:
        self._move(self.within, rows)
        self._project(rows, self.between)
        keys = linear(self.x[rows], *self.between.project)
        self.keys[:, rows] = keys.unflatten(1, (self.between.heads, -1)).transpose(0, 1)

    def _project(self, rows: slice, block: PackedAttention) -> torch.Tensor:
        """Writes the block's values; the points in the type of its products."""
        products = self.x[rows].to(self.joined.dtype)
        self.joined[rows, : products.shape[1]] = products
        self.values[..., rows] = linear(block.values, products).unflatten(0, (block.heads, -1))
        return products

    def _move(self, block: PackedAttention, rows: slice) -> None:
        self.x[rows] = block.update(self.x[rows], self.joined[rows])

    def _attend_within(self, job: tuple[int, int]) -> None:
        head, image = job
        rows = self.images[image]
        q, k = self.q[head, rows], self.k[head, rows]
        attend(q, k, self._values(head, image), self.counts[image], self.messages[rows, head])

    def _attend_between(self, head: int) -> None:
        keys = self.keys[head]
        keys0, keys1 = (keys[rows] for rows in self.images)
        values0, values1 = (self._values(head, image) for image in (0, 1))
        message0, message1 = (self.messages[rows, head] for rows in self.images)
        attend_both(keys0, keys1, (values0, values1), (self.counts[0], self.counts[1]), (message0, message1))

    def _values(self, head: int, image: int) -> torch.Tensor:
        """(D, rows of the image), zero beyond its count."""
        values = self.values[head, :, self.images[image]].clone(memory_format=torch.contiguous_format)
        values[:, self.counts[image] :] = 0
        return values


class PackedLightGlue:
    """A `LightGlue` on the CPU, for inference. Its later training does not reach this copy.

    `dtype`: of the layers' products; the points between them, the heads and sums are float32.
    """

    def __init__(self, glue: LightGlue, dtype: torch.dtype = torch.float32) -> None:
        self.glue, self.config, self.dtype = glue, glue.config, dtype
        with torch.no_grad():
            self.layers = [
                (_pack_self(layer.self_attn, dtype), _pack_cross(layer.cross_attn, dtype))
                for layer in glue.transformers
            ]

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
        points = [self._points(positions) for positions in (positions0, positions1)]
        x = torch.cat([_filled(values, of.rows) for values, of in zip((embedded0, embedded1), points)])
        with torch_threads() as run:
            return self._match(x, points, threshold, run)

    def _match(
        self, x: torch.Tensor, points: list[Points], threshold: float, run: ThreadsMap
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        glue, config, total = self.glue, self.config, sum(of.count for of in points)
        for layer, head in zip(range(config.layers), glue.log_assignment):
            LayerWork(x, points, *self.layers[layer]).update(run)
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
        turns = torch.polar(torch.ones_like(angles), angles)
        return Points(count, rows, torch.arange(count, device=positions.device), _filled(turns, rows))

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


def _pack_self(block: SelfBlock, dtype: torch.dtype) -> PackedAttention:
    def sorted_rows(values: torch.Tensor) -> torch.Tensor:
        # (query, key, value; rows of all heads, ...)
        return values.double().unflatten(0, (block.heads, -1, 3)).movedim(2, 0).flatten(1, 2)

    weight, bias = sorted_rows(block.Wqkv.weight), sorted_rows(block.Wqkv.bias)
    for part in (weight, bias):
        part[0] *= _base2(block.heads, weight.shape[1])
    project = weight[:2].flatten(0, 1).to(dtype), bias[:2].flatten().to(dtype)
    return PackedAttention(
        block.heads, project, weight[2].to(dtype), *_pack_ffn(block.ffn, block.out_proj, bias[2], dtype)
    )


def _pack_cross(block: CrossBlock, dtype: torch.dtype) -> PackedAttention:
    scale = _base2(block.heads, block.to_qk.out_features) ** 0.5
    project = tuple((values.double() * scale).float() for values in (block.to_qk.weight, block.to_qk.bias))
    after = _pack_ffn(block.ffn, block.to_out, block.to_v.bias.double(), dtype)
    return PackedAttention(block.heads, project, block.to_v.weight.to(dtype), *after)


def _base2(heads: int, width: int) -> float:
    """The factor from products of queries and keys to logits of base 2."""
    return log2(e) / (width / heads) ** 0.5


def _pack_ffn(
    ffn: nn.Sequential, out: nn.Linear, values_bias: torch.Tensor, dtype: torch.dtype
) -> tuple[tuple[torch.Tensor, torch.Tensor], nn.LayerNorm, tuple[torch.Tensor, torch.Tensor]]:
    first, norm, _, last = ffn
    of_points, of_message = first.weight.double().split(out.out_features, 1)
    weight = torch.cat([of_points, of_message @ out.weight.double()], 1)
    bias = first.bias.double() + of_message @ (out.weight.double() @ values_bias + out.bias.double())
    return (weight.to(dtype), bias.to(dtype)), norm, (last.weight.to(dtype), last.bias.to(dtype))


def _rows(count: int) -> int:
    return -(-count // STEP) * STEP


def _filled(values: torch.Tensor, rows: int) -> torch.Tensor:
    """values (N, ...) with zeros up to `rows`."""
    return torch.cat([values, values.new_zeros(rows - len(values), *values.shape[1:])])


def _of_images(values: torch.Tensor, points: list[Points]) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of each image, without those that fill up."""
    first, second = points
    return values[: first.count], values[first.rows : first.rows + second.count]
