"""A ViT's sizes, read off its shapes: shared by the layouts that hold one."""

from __future__ import annotations

from dune_cli.checkpoints.layouts.base import Shapes, heads_of, vit_name
from dune_cli.errors import CheckpointError
from dune_cli.models.vit import PositionPolicy, VitConfig


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
