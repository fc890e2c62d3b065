"""The decoder and heads that MASt3R and DUNE + MASt3R share: their key map and their sizes (spec 3)."""

from __future__ import annotations

import torch

from dune_cli.checkpoints.layouts.base import Shapes, heads_of
from dune_cli.checkpoints.layouts.constructor import Constructor
from dune_cli.errors import CheckpointError
from dune_cli.models.decoder import DecoderConfig
from dune_cli.models.dpt import DptConfig
from dune_cli.models.two_view import HeadConfig

Rules = tuple[tuple[str, str], ...]


def rules(prefix: str = "") -> Rules:
    """Published names under `prefix` -> ours."""
    found = [
        ("decoder_embed.", "decoder.embed."),
        ("dec_blocks.", "decoder.blocks1."),
        ("dec_blocks2.", "decoder.blocks2."),
        ("dec_norm.", "decoder.norm."),
        ("downstream_head{n}.head_local_features.", "head{n}.local."),
        ("downstream_head{n}.dpt.head.", "head{n}.points.head."),
        ("downstream_head{n}.dpt.act_postprocess.", "head{n}.points.levels."),
    ]
    for level in range(4):
        scratch, points = "downstream_head{n}.dpt.scratch.", "head{n}.points."
        found += [
            (f"{scratch}layer{level + 1}_rn.", f"{points}reduce.{level}."),
            (f"{scratch}refinenet{level + 1}.resConfUnit1.", f"{points}fuse.{level}.unit1."),
            (f"{scratch}refinenet{level + 1}.resConfUnit2.", f"{points}fuse.{level}.unit2."),
            (f"{scratch}refinenet{level + 1}.out_conv.", f"{points}fuse.{level}.out."),
        ]
    return tuple((prefix + published, ours) for published, ours in found)


def aliases(prefix: str = "") -> Rules:
    """The four reducing convolutions are in the files twice."""
    return ((prefix + "downstream_head{n}.dpt.scratch.layer_rn.{i}.", "head{n}.points.reduce.{i}."),)


def unused(prefix: str = "") -> tuple[str, ...]:
    """Published keys that no computation uses."""
    return (
        f"{prefix}mask_token",
        *(f"{prefix}downstream_head{n}.dpt.scratch.refinenet4.resConfUnit1." for n in (1, 2)),
    )


def complete(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`dec_blocks2` of a checkpoint without them are copies of `dec_blocks`."""
    if any(key.startswith("decoder.blocks2.") for key in tensors):
        return tensors
    first = {key: value for key, value in tensors.items() if key.startswith("decoder.blocks1.")}
    return tensors | {key.replace("blocks1", "blocks2", 1): value for key, value in first.items()}


def decoder_config(shapes: Shapes, constructor: Constructor, what: str) -> DecoderConfig:
    width, encoder_width = shapes.of("decoder.embed.weight", 2)
    return DecoderConfig(
        encoder_width=encoder_width,
        width=width,
        depth=shapes.depth("decoder.blocks1."),
        heads=heads_of(width, constructor.decoder_heads, what),
        hidden=shapes.of("decoder.blocks1.0.mlp.fc1.weight", 2)[0],
        rope_base=constructor.rope_base,
    )


def head_config(shapes: Shapes, constructor: Constructor, patch: int, what: str) -> HeadConfig:
    at = "head1.points."
    projections = [shapes.of(f"{at}levels.{level}.0.weight", 4) for level in range(4)]
    local_hidden, local_inputs = shapes.of("head1.local.fc1.weight", 2)
    channels = constructor.descriptor_channels + constructor.own_descriptor_confidence
    stored = shapes.of("head1.local.fc2.weight", 2)[0]
    if stored != channels * patch * patch:
        raise CheckpointError(
            f"{what}: the descriptor head gives {stored} values a token; the constructor string and patch {patch} "
            f"ask for {channels} x {patch} x {patch} = {channels * patch * patch}"
        )
    outputs = shapes.of(f"{at}head.4.weight", 4)[0]
    if outputs != 4:
        raise CheckpointError(f"{what}: the point head gives {outputs} channels; supported: 4 (x, y, z, confidence)")
    return HeadConfig(
        points=DptConfig(
            inputs=tuple(shape[1] for shape in projections),
            levels=tuple(shape[0] for shape in projections),
            features=shapes.of(f"{at}reduce.0.weight", 4)[0],
            head_hidden=shapes.of(f"{at}head.0.weight", 4)[0],
            head_features=shapes.of(f"{at}head.2.weight", 4)[0],
            outputs=outputs,
            patch=patch,
        ),
        local_inputs=local_inputs,
        local_hidden=local_hidden,
        descriptor_channels=constructor.descriptor_channels,
        own_descriptor_confidence=constructor.own_descriptor_confidence,
        confidence=constructor.confidence,
        descriptor_confidence=constructor.descriptor_confidence,
    )
