"""DINOv2's ImageNet heads: a bare `{weight, bias}` (docs/models/dinov2-heads.md, "ImageNet")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common, _dinov2_heads
from dune_cli.checkpoints.state_dict import KeyMap, count_parameters, find_state_dict, load_strict
from dune_cli.models.dinov2_heads import Classifier, LinearClassifier
from dune_cli.models.vit import VisionTransformer

NAME = "dinov2-classifier"
KIND = "classifier"
WHAT = "DINOv2's image classification head"
ENCODERS = _dinov2_heads.ENCODERS
PRIORITY = 90
KEYS = KeyMap(rules=(("weight", "project.weight"), ("bias", "project.bias")))
PER_BLOCK = (2, 5)

encoder_file = _dinov2_heads.encoder_file


def matches(checkpoint: Mapping[str, Any]) -> bool:
    state = find_state_dict(checkpoint)
    return state.keys() == {"weight", "bias"} and state["weight"].ndim == 2


def describe(checkpoint: Mapping[str, Any]) -> _common.Description:
    tensors = KEYS.apply(find_state_dict(checkpoint))
    classes, inputs = _common.Shapes(tensors, KEYS, WHAT).of("project.weight", 2)
    width, notes = _dinov2_heads.width_of(inputs, PER_BLOCK)
    return _common.Description(
        layout=NAME,
        kind="head",
        architecture=f"linear head, {classes} image classes",
        teachers=(),
        patch=14,
        width=width,
        parameters=count_parameters(tensors),
        notes=notes,
    )


def build(checkpoint: Mapping[str, Any], encoder: VisionTransformer, file_name: str = "") -> Classifier:
    """The classifier on `encoder`. CheckpointError if the weights do not fit, or the encoder is of another width."""
    _dinov2_heads.check_encoder(encoder, file_name)
    tensors = KEYS.apply(find_state_dict(checkpoint))
    classes, inputs = _common.Shapes(tensors, KEYS, WHAT).of("project.weight", 2)
    blocks = _dinov2_heads.blocks_read(inputs, PER_BLOCK, encoder)
    with torch.device("meta"):
        head = LinearClassifier(encoder.width, blocks, classes)
    load_strict(head, tensors, WHAT, KEYS)
    return Classifier(encoder, head, _dinov2_heads.last_blocks(encoder, blocks))


def export(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors in official names, and nothing else to remember."""
    return find_state_dict(checkpoint), {}


def restore(tensors: dict[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The published checkpoint again, from what `export` gave."""
    return dict(tensors)
