"""One encoder pass for several heads: equal encoders become one, which keeps the features of its last image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dune_cli.models.dune_mini import MiniConfig, MiniEncoder
from dune_cli.models.patch_embed import Tokens
from dune_cli.models.stems import Maps
from dune_cli.models.vit import VisionTransformer, VitConfig
from dune_cli.provenance import Source


class SharedBackbone(nn.Module):
    """Replaces a ViT or a `dune-mini`: runs it once for each new image, and gives the same tokens to every task.

    `layers`: the blocks, counted from 0, whose tokens tasks read; the last one is always among them. `passes` counts
    the runs.
    """

    def __init__(self, vit: VisionTransformer | MiniEncoder, layers: Sequence[int] = ()) -> None:
        super().__init__()
        self.vit = vit
        last = len(vit.blocks) - 1
        self.layers = tuple(sorted({range(last + 1)[layer] for layer in layers} | {last}))
        self.passes = 0
        self._images: torch.Tensor | None = None
        self._blocks: dict[int, Tokens] = {}
        self._maps: dict[str, Maps] = {}

    @property
    def config(self) -> VitConfig | MiniConfig:
        return self.vit.config

    @property
    def blocks(self) -> nn.ModuleList:
        return self.vit.blocks

    @property
    def patch(self) -> int:
        return self.vit.patch

    @property
    def width(self) -> int:
        return self.vit.width

    @property
    def native_size_px(self) -> int:
        return self.vit.native_size_px

    @property
    def teachers(self) -> tuple[str, ...]:
        return self.vit.teachers

    @property
    def source(self) -> Source:
        return self.vit.source

    def project(self, images: torch.Tensor, teacher: str) -> Tokens:
        """As the ViT: always ValueError."""
        return self.vit.project(images, teacher)

    def forward(self, images: torch.Tensor, norm: bool = True) -> Tokens:
        """As the ViT: images (B, 3, H, W) RGB in [0, 1] -> Tokens of the last block."""
        return self.intermediate(images, (self.layers[-1],), norm)[0]

    def intermediate(self, images: torch.Tensor, layers: Sequence[int], norm: bool = True) -> list[Tokens]:
        """As the ViT: outputs of the blocks `layers`. ValueError for a block that is not remembered."""
        wanted = [range(len(self.vit.blocks))[layer] for layer in layers]
        if not set(wanted) <= set(self.layers):
            raise ValueError(f"blocks {wanted} were asked for, {list(self.layers)} are kept")
        if self._images is None or self._images.shape != images.shape or not torch.equal(self._images, images):
            if isinstance(self.vit, MiniEncoder):
                self._maps, tokens = self.vit.levels(images, self.layers, norm=False)
            else:
                tokens = self.vit.intermediate(images, self.layers, norm=False)
            self._blocks = dict(zip(self.layers, tokens))
            self._images = images.clone()
            self.passes += 1
        found = [self._blocks[layer] for layer in wanted]
        return [self._normed(tokens) for tokens in found] if norm else found

    def levels(
        self, images: torch.Tensor, layers: Sequence[int], norm: bool = True
    ) -> tuple[dict[str, Maps], list[Tokens]]:
        """As `dune-mini`'s; of a ViT there are no maps."""
        tokens = self.intermediate(images, layers, norm)
        return self._maps, tokens

    def _normed(self, tokens: Tokens) -> Tokens:
        registers = tokens.registers.shape[1]
        x = self.vit.norm(torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], 1))
        return Tokens(x[:, 0], x[:, 1 : 1 + registers], x[:, 1 + registers :], tokens.grid)


@dataclass(frozen=True)
class SharedBackboneSlot:
    """Where a task keeps its encoder: the attribute `name` of `holder`, and which `layers` it reads beside the last."""

    task: str
    holder: Any
    name: str
    layers: tuple[int, ...] = ()


def head_slot(task: str, model: Any) -> SharedBackboneSlot | None:
    """The slot of a model with `encoder` and `blocks`; None for an encoder that cannot be shared, such as timm's."""
    if not isinstance(model.encoder, (VisionTransformer, MiniEncoder)):
        return None
    return SharedBackboneSlot(task, model, "encoder", tuple(model.blocks))


def share(slots: Sequence[SharedBackboneSlot]) -> dict[str, SharedBackbone]:
    """Puts a SharedBackbone into each slot, the same one where the encoders have equal sizes and weights; by task."""
    groups: list[list[SharedBackboneSlot]] = []
    for slot in slots:
        vit = getattr(slot.holder, slot.name)
        group = next((g for g in groups if same_weights(getattr(g[0].holder, g[0].name), vit)), None)
        if group is None:
            groups.append([slot])
        else:
            group.append(slot)
    trunks = {}
    for group in groups:
        vit = getattr(group[0].holder, group[0].name)
        trunk = SharedBackbone(vit, [layer for slot in group for layer in slot.layers]).eval()
        for slot in group:
            setattr(slot.holder, slot.name, trunk)
            trunks[slot.task] = trunk
    return trunks


def same_weights(one: nn.Module, two: nn.Module) -> bool:
    """Whether two encoders have the same sizes and, to the bit, the same weights and number types."""
    kinds = VisionTransformer, MiniEncoder
    if not isinstance(one, kinds) or type(one) is not type(two) or one.config != two.config:
        return False
    states = one.state_dict(), two.state_dict()
    return states[0].keys() == states[1].keys() and all(
        value.dtype == states[1][key].dtype and torch.equal(value, states[1][key]) for key, value in states[0].items()
    )
