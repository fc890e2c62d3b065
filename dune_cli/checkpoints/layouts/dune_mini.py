"""`dune-mini`, our own small encoder: {'model': state dict} with `encoder.*`, `projectors.*`, `teacher_norms.*`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dune_cli.checkpoints.keymap import KeyMap
from dune_cli.checkpoints.layouts import base, dune
from dune_cli.checkpoints.strict import load_strict
from dune_cli.models.encoder import DistilledEncoder
from dune_cli.models.mini import PATCH, MiniConfig, MiniEncoder

NAME = "dune-mini"
KIND = "encoder"
WHAT = "a dune-mini encoder"
KEYS = KeyMap(rules=(("encoder.", "vit."),))


def matches(tree: Mapping[str, Any], metadata: Mapping[str, str]) -> bool:
    return {"encoder.cls_token", "encoder.stem.down2.0.weight"} <= base.state_dict_of(tree).keys()


def _config(shapes: base.Shapes) -> MiniConfig:
    width, eighth, _, _ = shapes.of("vit.to_tokens.weight", 4)
    return MiniConfig(
        width=width,
        depth=shapes.depth("vit.blocks."),
        heads=base.heads_of(width, None, WHAT),
        hidden=shapes.of("vit.blocks.0.mlp.fc1.weight", 2)[0],
        registers=shapes.of("vit.register_tokens", 3)[1],
        stem=(shapes.of("vit.stem.down2.0.weight", 4)[0], shapes.of("vit.stem.down4.0.weight", 4)[0], eighth),
        stem_blocks=(shapes.depth("vit.stem.blocks4."), shapes.depth("vit.stem.blocks8.")),
    )


def _read(tree: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], DistilledEncoder]:
    tensors = KEYS.apply(base.state_dict_of(tree))
    shapes = base.Shapes(tensors, KEYS, WHAT)
    with torch.device("meta"):
        return tensors, DistilledEncoder(MiniEncoder(_config(shapes)), *dune.teacher_parts(shapes))


def describe(tree: Mapping[str, Any], metadata: Mapping[str, str]) -> base.Description:
    tensors, model = _read(tree)
    config = model.vit.config
    return base.Description(
        layout=NAME,
        kind=KIND,
        architecture=f"dune-mini of width {config.width}, {config.depth} blocks, {config.registers} registers",
        teachers=model.teachers,
        patch=PATCH,
        width=config.width,
        parameters=base.count(tensors),
        notes=("every size that is a multiple of 16 px is native",),
    )


def build(tree: Mapping[str, Any]) -> DistilledEncoder:
    """The encoder with its projectors and weights. CheckpointError if they do not fit."""
    tensors, model = _read(tree)
    load_strict(model, tensors, KEYS, WHAT)
    return model


def export(tree: Mapping[str, Any], metadata: Mapping[str, str]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors, and nothing else to remember: the shapes say it all."""
    return base.state_dict_of(tree), {}


def restore(tensors: dict[str, torch.Tensor], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The tree again, from what `export` gave."""
    return {"model": dict(tensors)}
