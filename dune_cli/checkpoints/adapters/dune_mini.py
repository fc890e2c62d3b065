"""`dune-mini`, our own small encoder: {'model': state dict} with `encoder.*`, `projectors.*`, `teacher_norms.*`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common, dune
from dune_cli.checkpoints.state_dict import KeyMap, count_parameters, find_state_dict, load_strict
from dune_cli.models.distilled_encoder import DistilledEncoder
from dune_cli.models.dune_mini import PARTS, PATCH, MiniConfig, MiniEncoder

NAME = "dune-mini"
KIND = "encoder"
WHAT = "a dune-mini encoder"
PRIORITY = 20
KEYS = KeyMap(rules=(("encoder.", "vit."),))


def matches(checkpoint: Mapping[str, Any]) -> bool:
    keys = find_state_dict(checkpoint).keys()
    return "encoder.cls_token" in keys and any(key.startswith("encoder.to_tokens.projs.") for key in keys)


def _config(shapes: _common.Shapes) -> MiniConfig:
    parts = tuple(name for name in PARTS if name in shapes.parts("vit.stem."))
    conv = {}
    if "conv" in parts:
        downs = [shapes.of(f"vit.stem.conv.down{stride}.0.weight", 4)[0] for stride in (2, 4, 8)]
        blocks = [shapes.depth(f"vit.stem.conv.blocks{stride}.") for stride in (4, 8)]
        conv = {"conv": tuple(downs), "conv_blocks": tuple(blocks)}
    _, registers, width = shapes.of("vit.register_tokens", 3)
    return MiniConfig(
        width=width,
        depth=shapes.depth("vit.blocks."),
        heads=_common.heads_of(width, None, WHAT),
        hidden=shapes.of("vit.blocks.0.mlp.fc1.weight", 2)[0],
        registers=registers,
        parts=parts,
        **conv,
    )


def _read(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], DistilledEncoder]:
    tensors = KEYS.apply(find_state_dict(checkpoint))
    shapes = _common.Shapes(tensors, KEYS, WHAT)
    with torch.device("meta"):
        return tensors, DistilledEncoder(MiniEncoder(_config(shapes)), *dune.teacher_parts(shapes))


def describe(checkpoint: Mapping[str, Any]) -> _common.Description:
    tensors, model = _read(checkpoint)
    config = model.vit.config
    return _common.Description(
        layout=NAME,
        kind=KIND,
        architecture=f"dune-mini of width {config.width}, {config.depth} blocks, {config.registers} registers, stem of "
        f"{' and '.join(config.parts)}",
        teachers=model.teachers,
        patch=PATCH,
        width=config.width,
        parameters=count_parameters(tensors),
        notes=("every size that is a multiple of 16 px is native",),
    )


def build(checkpoint: Mapping[str, Any]) -> DistilledEncoder:
    """The encoder with its projectors and weights. CheckpointError if they do not fit."""
    tensors, model = _read(checkpoint)
    load_strict(model, tensors, WHAT, KEYS)
    return model


def export(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors, and nothing else to remember: the shapes say it all."""
    return find_state_dict(checkpoint), {}


def restore(tensors: dict[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint again, from what `export` gave."""
    return {"model": dict(tensors)}
