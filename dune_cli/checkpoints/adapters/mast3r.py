"""MASt3R's files: {'args': Namespace(model='AsymmetricMASt3R(...)'), 'model': state dict} (docs/models/mast3r.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common, _two_view
from dune_cli.checkpoints.adapters._two_view import read_constructor
from dune_cli.checkpoints.state_dict import KeyMap, count_parameters, find_state_dict, load_strict, without
from dune_cli.errors import CheckpointError
from dune_cli.models.mast3r import CrocoConfig, CrocoEncoder, TwoViewDecoder, TwoViewModel

NAME = "mast3r"
KIND = "two-view"
WHAT = "a MASt3R model"
PRIORITY = 40
PATCH = 16
KEYS = KeyMap(
    rules=(
        ("patch_embed.", "encoder.patch_embed."),
        ("enc_blocks.", "encoder.blocks."),
        ("enc_norm.", "encoder.norm."),
        *_two_view.rules(),
    ),
    aliases=_two_view.aliases(),
    ignored=_two_view.unused(),
)


def matches(checkpoint: Mapping[str, Any]) -> bool:
    return {"enc_norm.weight", "decoder_embed.weight"} <= find_state_dict(checkpoint).keys()


def _read(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], TwoViewModel]:
    tensors = _two_view.complete(KEYS.apply(find_state_dict(checkpoint)))
    shapes = _common.Shapes(tensors, KEYS, WHAT)
    constructor = read_constructor(_common.field(checkpoint.get("args"), "model"))
    width, _, patch, _ = shapes.of("encoder.patch_embed.proj.weight", 4)
    if patch != (constructor.patch or PATCH):
        raise CheckpointError(
            f"{WHAT}: the constructor string says patch {constructor.patch or PATCH}, the weights {patch}"
        )
    encoder = CrocoConfig(
        width=width,
        depth=shapes.depth("encoder.blocks."),
        heads=_common.heads_of(width, constructor.encoder_heads, WHAT),
        hidden=shapes.of("encoder.blocks.0.mlp.fc1.weight", 2)[0],
        patch=patch,
        rope_base=constructor.rope_base,
    )
    decoder = _two_view.decoder_config(shapes, constructor, WHAT)
    head = _two_view.head_config(shapes, constructor, patch, WHAT)
    with torch.device("meta"):
        return tensors, TwoViewModel(CrocoEncoder(encoder), TwoViewDecoder(decoder), head)


def describe(checkpoint: Mapping[str, Any]) -> _common.Description:
    tensors, model = _read(checkpoint)
    encoder, decoder = model.encoder.config, model.decoder.config
    return _common.Description(
        layout=NAME,
        kind=KIND,
        architecture=f"CroCo {_common.vit_name(encoder.width, encoder.patch)}, {encoder.depth} blocks, and a two-view "
        f"decoder of width {decoder.width}, {decoder.depth} blocks",
        teachers=(),
        patch=encoder.patch,
        width=encoder.width,
        parameters=count_parameters(tensors),
        notes=(f"descriptors of {model.head1.config.descriptor_channels} channels",),
    )


def build(checkpoint: Mapping[str, Any]) -> TwoViewModel:
    """The model with its weights. CheckpointError if they do not fit."""
    tensors, model = _read(checkpoint)
    load_strict(model, tensors, WHAT, KEYS)
    return model


def export(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The used tensors in official names, and the constructor string."""
    tensors = find_state_dict(checkpoint)
    return without(tensors, KEYS.ignored), {"model": str(_common.field(checkpoint.get("args"), "model"))}


def restore(tensors: dict[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The published checkpoint again, from what `export` gave."""
    return {"args": {"model": settings.get("model")}, "model": dict(tensors)}
