"""The backbone of Depth Anything 3 (docs/models/depth-anything-3.md, "Backbone"): DINOv2 that sees several views.

Blocks before `first_global` work within a view. From there on even ones do, and odd ones attend over all tokens of all
views, with q/k norms and rotary positions. The monocular models have neither: they are DINOv2 with another eps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dune_cli.models.blocks import Block, Rope2d, Rotation
from dune_cli.models.vit import VisionTransformer, VitConfig

ROPE_BASE = 100.0
NORM_EPS = 1e-5  # of the final norm; blocks have 1e-6
MIN_VIEWS_WITH_CHOICE = 3  # of fewer views the first one is the reference
RANGE_EPS = 1e-8


@dataclass(frozen=True)
class Da3BackboneConfig:
    """`vit`: sizes. `layers`: the blocks that the head reads, counted from 0. `first_global`: the block from which the
    blocks alternate between one view and all views, and before which the camera tokens are placed (None: a monocular
    model). `first_rotary`, `first_normed`: the blocks from which positions are rotary and q and k are normed."""

    vit: VitConfig
    layers: tuple[int, int, int, int]
    first_global: int | None
    first_rotary: int | None
    first_normed: int | None


@dataclass(frozen=True)
class Da3Features:
    """levels: four maps' tokens (V, h·w, C), C = 2D for several views, D for one. camera (V, 2D): the camera feature of
    each view, not normed; None of a monocular model. grid: (h, w). reference_view: in the order of the images."""

    levels: tuple[torch.Tensor, ...]
    camera: torch.Tensor | None
    grid: tuple[int, int]
    reference_view: int


class Da3Backbone(VisionTransformer):
    """Images in [0, 1] to the tokens of four blocks; normalises for itself. Parameter names are the published ones."""

    def __init__(self, config: Da3BackboneConfig) -> None:
        super().__init__(config.vit)
        self.layers, self.first_global = config.layers, config.first_global
        self.first_rotary = config.first_rotary
        vit = config.vit
        first_normed = vit.depth if config.first_normed is None else config.first_normed
        self.blocks = nn.ModuleList(
            Block(vit.width, vit.heads, vit.hidden, vit.layer_scale, qk_norm=index >= first_normed)
            for index in range(vit.depth)
        )
        self.norm = nn.LayerNorm(vit.width, NORM_EPS)
        if self.first_global is not None:
            self.camera_token = nn.Parameter(torch.zeros(1, 2, vit.width))
            self.rope = Rope2d(vit.width // vit.heads, ROPE_BASE)

    def views(
        self,
        images: torch.Tensor,
        camera_tokens: torch.Tensor | None = None,
        strategy: str = "saddle_balanced",
        alone: bool = False,
    ) -> Da3Features:
        """images (V, 3, H, W), views of one scene -> Da3Features, views in the order of `images`.

        camera_tokens (V, D): of given poses; without them a reference view is chosen by `strategy`
        (REFERENCE_STRATEGIES) among three views or more. `alone`: each image is a scene of one view. Raises ValueError
        with the sizes when a side is no multiple of the patch, and for an unknown strategy.
        """
        if self.first_global is None:
            tokens = self.intermediate(images, self.layers)
            return Da3Features(tuple(one.patches for one in tokens), None, tokens[0].grid, 0)
        x, grid = self._embed(images)
        order = None
        within, across = self._rotations(grid, 1 if alone else len(x), x.device)
        local, taken = x, []
        for index, block in enumerate(self.blocks[: max(self.layers) + 1]):
            if index == self.first_global - 1 and camera_tokens is None and not alone:
                order = _reference_first(choose_reference_view(x[:, 0], strategy), len(x), x.device)
                x, local = x[order], local[order]
            if index == self.first_global:
                x = torch.cat([self._camera_tokens(camera_tokens, x.shape[0], alone)[:, None], x[:, 1:]], 1)
                local = x
            rotary = self.first_rotary is not None and index >= self.first_rotary
            if index >= self.first_global and index % 2 == 1:
                scenes = x if alone else x.flatten(0, 1)[None]
                x = block(scenes, across if rotary else None).reshape(x.shape)
            else:
                local = x = block(x, within if rotary else None)
            if index in self.layers:
                taken.append((local, x))
        levels = tuple(torch.cat([first[:, 1:], self.norm(last)[:, 1:]], -1) for first, last in taken)
        camera = torch.cat([taken[-1][0][:, 0], taken[-1][1][:, 0]], -1)
        if order is None:
            return Da3Features(levels, camera, grid, 0)
        restore = torch.argsort(order)
        return Da3Features(tuple(level[restore] for level in levels), camera[restore], grid, int(order[0]))

    def _camera_tokens(self, given: torch.Tensor | None, count: int, alone: bool) -> torch.Tensor:
        """(V, D): the first entry for the first view of a scene, the second one for all others."""
        if given is not None:
            return given.to(self.camera_token)
        first, others = self.camera_token[0]
        return first.expand(count, -1) if alone else torch.stack([first, *[others] * (count - 1)])

    def _rotations(self, grid: tuple[int, int], count: int, device: torch.device) -> tuple[Rotation, Rotation]:
        """Of the tokens of one view, and of all tokens of `count` views, where every patch has the position (1, 1)."""
        rows, columns = (torch.arange(n, dtype=torch.float32) + 1 for n in grid)
        patches = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
        slot = torch.zeros(1, 2)
        within = torch.cat([slot, patches])
        across = torch.cat([slot, torch.ones_like(patches)]).repeat(count, 1)
        return self.rope.at(within, device), self.rope.at(across, device)


def _reference_first(view: int, count: int, device: torch.device) -> torch.Tensor:
    """(V,) the order of the views with `view` at the front."""
    return torch.tensor([view, *(other for other in range(count) if other != view)], device=device)


def choose_reference_view(cls: torch.Tensor, strategy: str) -> int:
    """The view that goes first, from the CLS tokens (V, D) of all views; 0 for fewer than three.

    docs/models/depth-anything-3.md, "Reference view". Raises ValueError for an unknown strategy.
    """
    if strategy not in REFERENCE_STRATEGIES:
        raise ValueError(f"unknown strategy {strategy!r}; allowed: {', '.join(REFERENCE_STRATEGIES)}")
    if len(cls) < MIN_VIEWS_WITH_CHOICE:
        return 0
    return REFERENCE_STRATEGIES[strategy](cls.float())


def _saddle_balanced(cls: torch.Tensor) -> int:
    """The view whose similarity to the others, norm and variance are nearest the middle of their ranges."""
    norms = cls.norm(dim=-1)
    units = cls / norms[:, None].clamp(min=1e-12)
    similarity = ((units @ units.T).sum(-1) - 1) / (len(cls) - 1)
    measures = torch.stack([similarity, norms, units.var(-1)])
    low, high = measures.amin(-1, keepdim=True), measures.amax(-1, keepdim=True)
    return int((((measures - low) / (high - low + RANGE_EPS)) - 0.5).abs().sum(0).argmin())


def _saddle_sim_range(cls: torch.Tensor) -> int:
    """The view with the largest range of similarities, its own counted as 0."""
    units = cls / cls.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    similarity = units @ units.T - torch.eye(len(cls), device=cls.device)
    return int((similarity.amax(-1) - similarity.amin(-1)).argmax())


REFERENCE_STRATEGIES: dict[str, Callable[[torch.Tensor], int]] = {
    "saddle_balanced": _saddle_balanced,
    "first": lambda cls: 0,
    "middle": lambda cls: len(cls) // 2,
    "saddle_sim_range": _saddle_sim_range,
}


def published_layers(depth: int, any_view: bool) -> Sequence[int] | None:
    """The blocks that the head of a published model of `depth` blocks reads; None for another depth."""
    return {
        (12, True): (5, 7, 9, 11),
        (24, True): (11, 15, 19, 23),
        (12, False): (2, 5, 8, 11),
        (24, False): (4, 11, 17, 23),
    }.get((depth, any_view))
