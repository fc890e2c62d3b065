"""DINOv2's hub files: a flat state dict, with or without registers (docs/models/encoder.md and weights.md)."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common
from dune_cli.checkpoints.adapters._common import native_size, vit_config, vit_summary
from dune_cli.checkpoints.state_dict import KeyMap, count_parameters, find_state_dict, load_strict, without
from dune_cli.models.vit import VisionTransformer

NAME = "dinov2"
KIND = "encoder"
WHAT = "a DINOv2 encoder"
PRIORITY = 30
KEYS = KeyMap(rules=(("blocks.{chunk}.{i}.", "blocks.{i}."),), ignored=("mask_token",))
PLAIN = KeyMap(rules=(), ignored=KEYS.ignored)


def matches(checkpoint: Mapping[str, Any]) -> bool:
    return is_encoder(find_state_dict(checkpoint).keys())


def is_encoder(names: Set[str]) -> bool:
    """Whether a state dict of these names is an encoder's."""
    return {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= names and any(
        name.startswith("blocks.") and name.endswith("ls1.gamma") for name in names
    )


def _read(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], KeyMap, VisionTransformer]:
    state = find_state_dict(checkpoint)
    keymap = KEYS if any(key.startswith("blocks.0.0.") for key in state) else PLAIN
    tensors = keymap.apply(state)
    config = vit_config(_common.Shapes(tensors, keymap, WHAT), "", None, WHAT)
    with torch.device("meta"):
        return tensors, keymap, VisionTransformer(config)


def describe(checkpoint: Mapping[str, Any]) -> _common.Description:
    tensors, _, model = _read(checkpoint)
    config = model.config
    return _common.Description(
        layout=NAME,
        kind=KIND,
        architecture=vit_summary(config),
        teachers=(),
        patch=config.patch,
        width=config.width,
        parameters=count_parameters(tensors),
        notes=(native_size(config),),
    )


def build(checkpoint: Mapping[str, Any]) -> VisionTransformer:
    """The encoder with its weights. CheckpointError if they do not fit."""
    tensors, keymap, model = _read(checkpoint)
    load_strict(model, tensors, WHAT, keymap)
    return model


def export(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The used tensors in official names, and nothing else to remember."""
    return without(find_state_dict(checkpoint), KEYS.ignored), {}


def restore(tensors: dict[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The published checkpoint again, from what `export` gave."""
    return dict(tensors)
