"""What the adapters share: the description of a file, and the sizes of a network read off its shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dune_cli.checkpoints.state_dict import KeyMap
from dune_cli.errors import CheckpointError
from dune_cli.models.vit import PositionPolicy, VitConfig

Kind = Literal[
    "encoder",
    "two-view",
    "multi-view",
    "depth",
    "human",
    "matcher",
    "keypoints",
    "detector-matcher",
    "head",
    "teacher",
    "unknown",
]
SIZES = {384: "S", 768: "B", 1024: "L", 1536: "g"}


@dataclass(frozen=True)
class Description:
    """What a weight file holds. `parameters` counts the values that the network uses; `patch`, `width` 0 if unknown."""

    layout: str
    kind: Kind
    architecture: str
    teachers: tuple[str, ...]
    patch: int
    width: int
    parameters: int
    notes: tuple[str, ...] = ()


def field(arguments: Any, name: str) -> Any:
    """`name` out of a checkpoint's arguments, a Namespace or a dictionary; None if absent."""
    if isinstance(arguments, Mapping):
        return arguments.get(name)
    return getattr(arguments, name, None)


class Shapes:
    """The shapes of a state dict in our names; asking for what is not there is a CheckpointError."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], keymap: KeyMap, what: str) -> None:
        self._tensors, self._keymap, self._what = tensors, keymap, what

    def of(self, key: str, rank: int) -> tuple[int, ...]:
        """The shape of `key`, which has `rank` sides, none of them 0."""
        name = self._keymap.published(key)
        if key not in self._tensors:
            raise CheckpointError(f"the file does not fit {self._what}: {name} is missing")
        shape = tuple(self._tensors[key].shape)
        if len(shape) != rank or 0 in shape:
            raise CheckpointError(f"the file does not fit {self._what}: {name} has the shape {shape}")
        return shape

    def has(self, prefix: str) -> bool:
        """Whether a key starts with `prefix`."""
        return any(key.startswith(prefix) for key in self._tensors)

    def depth(self, prefix: str) -> int:
        """How many numbered parts follow `prefix` ("vit.blocks.")."""
        return len(set(self.parts(prefix)))

    def parts(self, prefix: str) -> list[str]:
        """The path parts that follow `prefix`, in the file's order."""
        cut = len(prefix)
        return list(dict.fromkeys(key[cut:].partition(".")[0] for key in self._tensors if key.startswith(prefix)))


def heads_of(width: int, stated: int | None, what: str) -> int:
    """The number of attention heads: stated by the file, else one per 64 channels (true of ViT-S, -B, -L)."""
    if stated is None and width % 64:
        raise CheckpointError(f"{what}: the number of attention heads does not follow from width {width}")
    heads = width // 64 if stated is None else stated
    if heads < 1 or width % heads:
        raise CheckpointError(f"{what}: width {width} cannot be shared by {heads} attention heads")
    return heads


def vit_name(width: int, patch: int) -> str:
    """ "ViT-S/14" and so on."""
    return f"ViT-{SIZES[width]}/{patch}" if width in SIZES else f"ViT of width {width}, patch {patch}"


def vit_config(shapes: Shapes, prefix: str, policy: PositionPolicy | None, what: str) -> VitConfig:
    """The configuration of the ViT under `prefix`. `policy` None: "antialias" with registers, "offset" without."""
    width, _, patch, _ = shapes.of(f"{prefix}patch_embed.proj.weight", 4)
    positions = shapes.of(f"{prefix}pos_embed", 3)[1] - 1
    side = round(positions**0.5)
    if side * side != positions or not positions:
        raise CheckpointError(f"{what}: {positions} patch positions do not form a square")
    registers = shapes.of(f"{prefix}register_tokens", 3)[1] if shapes.has(f"{prefix}register_tokens") else 0
    gated = shapes.has(f"{prefix}blocks.0.mlp.w12.")
    hidden = shapes.of(f"{prefix}blocks.0.mlp.{'w3' if gated else 'fc2'}.weight", 2)[1]
    return VitConfig(
        width=width,
        depth=shapes.depth(f"{prefix}blocks."),
        heads=heads_of(width, None, what),
        hidden=hidden,
        patch=patch,
        registers=registers,
        positions_side=side,
        position_policy=policy or ("antialias" if registers else "offset"),
        layer_scale=shapes.has(f"{prefix}blocks.0.ls1."),
        gated=gated,
    )


def vit_summary(config: VitConfig) -> str:
    """ "ViT-S/14, 12 blocks, 4 registers"."""
    return f"{vit_name(config.width, config.patch)}, {config.depth} blocks, {config.registers} registers"


def native_size(config: VitConfig) -> str:
    """The size of the trained positions and how others are reached, in words."""
    return f"native size {config.positions_side * config.patch} px, positions: {config.position_policy}"
