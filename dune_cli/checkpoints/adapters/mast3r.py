"""MASt3R's files: {'args': Namespace(model='AsymmetricMASt3R(...)'), 'model': state dict} (spec 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common, _two_view
from dune_cli.checkpoints.adapters._two_view import read_constructor
from dune_cli.checkpoints.state_dict import KeyMap, load_strict
from dune_cli.errors import CheckpointError
from dune_cli.models.mast3r import CrocoConfig, CrocoEncoder, TwoViewDecoder, TwoViewModel

NAME = "mast3r"
KIND = "two-view"
WHAT = "a MASt3R model"
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


def matches(tree: Mapping[str, Any], metadata: Mapping[str, str]) -> bool:
    return {"enc_norm.weight", "decoder_embed.weight"} <= _common.state_dict_of(tree).keys()


def _read(tree: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], TwoViewModel]:
    tensors = _two_view.complete(KEYS.apply(_common.state_dict_of(tree)))
    shapes = _common.Shapes(tensors, KEYS, WHAT)
    constructor = read_constructor(_common.field(tree.get("args"), "model"))
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


def describe(tree: Mapping[str, Any], metadata: Mapping[str, str]) -> _common.Description:
    tensors, model = _read(tree)
    encoder, decoder = model.encoder.config, model.decoder.config
    return _common.Description(
        layout=NAME,
        kind=KIND,
        architecture=f"CroCo {_common.vit_name(encoder.width, encoder.patch)}, {encoder.depth} blocks, and a two-view "
        f"decoder of width {decoder.width}, {decoder.depth} blocks",
        teachers=(),
        patch=encoder.patch,
        width=encoder.width,
        parameters=_common.count(tensors),
        notes=(f"descriptors of {model.head1.config.descriptor_channels} channels",),
    )


def build(tree: Mapping[str, Any]) -> TwoViewModel:
    """The model with its weights. CheckpointError if they do not fit."""
    tensors, model = _read(tree)
    load_strict(model, tensors, KEYS, WHAT)
    return model


def export(tree: Mapping[str, Any], metadata: Mapping[str, str]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The used tensors in official names, and the constructor string."""
    tensors = _common.state_dict_of(tree)
    return _common.without(tensors, KEYS.ignored), {"model": str(_common.field(tree.get("args"), "model"))}


def restore(tensors: dict[str, torch.Tensor], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The published tree again, from what `export` gave."""
    return {"args": {"model": facts.get("model")}, "model": dict(tensors)}
