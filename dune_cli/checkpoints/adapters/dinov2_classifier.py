"""DINOv2's ImageNet heads: a bare `{weight, bias}` (spec 7, "ImageNet")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common, _dinov2_heads
from dune_cli.checkpoints.state_dict import KeyMap, load_strict
from dune_cli.models.dinov2_heads import Classifier, LinearClassifier
from dune_cli.models.vit import VisionTransformer

NAME = "dinov2-classifier"
KIND = "classifier"
WHAT = "DINOv2's image classification head"
KEYS = KeyMap(rules=(("weight", "project.weight"), ("bias", "project.bias")))
PER_BLOCK = (2, 5)


def matches(tree: Mapping[str, Any], metadata: Mapping[str, str]) -> bool:
    state = _common.state_dict_of(tree)
    return state.keys() == {"weight", "bias"} and state["weight"].ndim == 2


def describe(tree: Mapping[str, Any], metadata: Mapping[str, str]) -> _common.Description:
    tensors = KEYS.apply(_common.state_dict_of(tree))
    classes, inputs = _common.Shapes(tensors, KEYS, WHAT).of("project.weight", 2)
    width, notes = _dinov2_heads.width_of(inputs, PER_BLOCK)
    return _common.Description(
        layout=NAME,
        kind="head",
        architecture=f"linear head, {classes} image classes",
        teachers=(),
        patch=14,
        width=width,
        parameters=_common.count(tensors),
        notes=notes,
    )


def build(tree: Mapping[str, Any], encoder: VisionTransformer) -> Classifier:
    """The classifier on `encoder`. CheckpointError if the weights do not fit, or the encoder is of another width."""
    tensors = KEYS.apply(_common.state_dict_of(tree))
    classes, inputs = _common.Shapes(tensors, KEYS, WHAT).of("project.weight", 2)
    blocks = _dinov2_heads.blocks_read(inputs, PER_BLOCK, encoder)
    with torch.device("meta"):
        head = LinearClassifier(encoder.width, blocks, classes)
    load_strict(head, tensors, KEYS, WHAT)
    return Classifier(encoder, head, _dinov2_heads.last_blocks(encoder, blocks))


def export(tree: Mapping[str, Any], metadata: Mapping[str, str]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors in official names, and nothing else to remember."""
    return _common.state_dict_of(tree), {}


def restore(tensors: dict[str, torch.Tensor], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The published tree again, from what `export` gave."""
    return dict(tensors)
