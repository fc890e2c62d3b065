"""DUNE's encoder files: {'model': state dict, 'args': Namespace, 'optimizer', 'iter'}.

docs/models/encoder.md and docs/models/weights.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common
from dune_cli.checkpoints.adapters._common import native_size, vit_config, vit_summary
from dune_cli.checkpoints.state_dict import KeyMap, count_parameters, find_state_dict, load_strict, without
from dune_cli.models.distilled_encoder import DistilledEncoder, TeacherNorm, TeacherProjector
from dune_cli.models.vit import VisionTransformer

NAME = "dune"
KIND = "encoder"
WHAT = "a DUNE encoder"
PRIORITY = 10
KEYS = KeyMap(
    rules=(
        ("encoder.blocks.{chunk}.{i}.", "vit.blocks.{i}."),
        ("encoder.", "vit."),
    ),
    ignored=("encoder.mask_token",),
)


def matches(checkpoint: Mapping[str, Any]) -> bool:
    return {"encoder.cls_token", "encoder.patch_embed.proj.weight"} <= find_state_dict(checkpoint).keys()


def _read(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], DistilledEncoder]:
    tensors = KEYS.apply(find_state_dict(checkpoint))
    shapes = _common.Shapes(tensors, KEYS, WHAT)
    config = vit_config(shapes, "vit.", "offset", WHAT)
    with torch.device("meta"):
        return tensors, DistilledEncoder(VisionTransformer(config), *teacher_parts(shapes))


def teacher_parts(shapes: _common.Shapes) -> tuple[dict[str, TeacherProjector], dict[str, TeacherNorm]]:
    """The projectors and teacher norms that a file's shapes tell of, by teacher."""
    projectors = {name: _projector(shapes, f"projectors.{name}.") for name in shapes.parts("projectors.")}
    norms = {name: _teacher_norm(shapes, f"teacher_norms.{name}.") for name in shapes.parts("teacher_norms.")}
    return projectors, norms


def _projector(shapes: _common.Shapes, prefix: str) -> TeacherProjector:
    teacher_width, width = shapes.of(f"{prefix}linear.weight", 2)
    return TeacherProjector(
        width=width,
        heads=_common.heads_of(width, None, WHAT),
        hidden=shapes.of(f"{prefix}blocks.0.mlp.fc1.weight", 2)[0],
        depth=shapes.depth(f"{prefix}blocks."),
        teacher_width=teacher_width,
    )


def _teacher_norm(shapes: _common.Shapes, prefix: str) -> TeacherNorm:
    kinds = shapes.parts(f"{prefix}normalizers.")
    return TeacherNorm([(kind, shapes.of(f"{prefix}normalizers.{kind}.mean", 1)[0]) for kind in kinds])


def describe(checkpoint: Mapping[str, Any]) -> _common.Description:
    tensors, model = _read(checkpoint)
    config = model.vit.config
    notes = [native_size(config)]
    if isinstance(checkpoint.get("iter"), int):
        notes.append(f"trained for {checkpoint['iter']} iterations")
    if "optimizer" in checkpoint:
        notes.append("holds optimizer state, which running it does not need")
    return _common.Description(
        layout=NAME,
        kind=KIND,
        architecture=vit_summary(config),
        teachers=model.teachers,
        patch=config.patch,
        width=config.width,
        parameters=count_parameters(tensors),
        notes=tuple(notes),
    )


def build(checkpoint: Mapping[str, Any]) -> DistilledEncoder:
    """The encoder with its projectors and weights. CheckpointError if they do not fit."""
    tensors, model = _read(checkpoint)
    load_strict(model, tensors, WHAT, KEYS)
    return model


def export(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The used tensors in official names, and nothing else to remember: the shapes say it all."""
    return without(find_state_dict(checkpoint), KEYS.ignored), {}


def restore(tensors: dict[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The published checkpoint again, from what `export` gave."""
    return {"model": dict(tensors)}
