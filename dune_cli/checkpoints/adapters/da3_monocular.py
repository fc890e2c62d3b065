"""Depth Anything 3 for single photos (DA3METRIC-LARGE, DA3MONO-LARGE): docs/models/depth-anything-3.md, "Files".

Both have the same keys and shapes: the model's name, in config.json or in the names of file and folder, tells them
apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common, _depth_anything3, da3_multi_view
from dune_cli.checkpoints.state_dict import count_parameters, load_strict
from dune_cli.errors import CheckpointError
from dune_cli.models.da3_backbone import Da3Backbone
from dune_cli.models.da3_heads import Da3Head
from dune_cli.models.depth_anything3 import MonocularDepth

NAME = "da3-monocular"
KIND = "depth"
WHAT = "a monocular model of Depth Anything 3"
PRIORITY = 20

with_surroundings = _depth_anything3.with_surroundings
export, restore = da3_multi_view.export, da3_multi_view.restore


def matches(checkpoint: Mapping[str, Any]) -> bool:
    return _depth_anything3.has(checkpoint, _depth_anything3.MONOCULAR) and not da3_multi_view.matches(checkpoint)


def _read(checkpoint: Mapping[str, Any], metric: bool) -> tuple[dict[str, torch.Tensor], MonocularDepth]:
    tensors = _depth_anything3.tensors_of(checkpoint, WHAT)
    backbone, head = _depth_anything3.sizes(checkpoint, tensors, False, WHAT)
    with torch.device("meta"):
        return tensors, MonocularDepth(Da3Backbone(backbone), Da3Head(head, backbone.vit.patch), metric)


def describe(checkpoint: Mapping[str, Any]) -> _common.Description:
    tensors, model = _read(checkpoint, False)
    used = model.state_dict().keys()
    kind = {"metric": "metric depth and sky", "mono": "relative depth and sky"}.get(
        _depth_anything3.kind_of(checkpoint) or "",
        "depth and sky, METRIC or MONO (neither name nor config.json says)",
    )
    return _common.Description(
        layout=NAME,
        kind=KIND,
        architecture=f"Depth Anything 3, {_common.vit_summary(model.backbone.config)}, DPT head of "
        f"{model.head.config.features} features: {kind}",
        teachers=(),
        patch=model.backbone.patch,
        width=model.backbone.width,
        parameters=count_parameters({key: tensor for key, tensor in tensors.items() if key in used}),
        notes=(f"model name {checkpoint['model_name']}",) if checkpoint.get("model_name") else (),
    )


def build(checkpoint: Mapping[str, Any]) -> MonocularDepth:
    """The network with its weights. CheckpointError if they do not fit, and where METRIC and MONO cannot be told
    apart; keys that it does not know are ignored."""
    kind = _depth_anything3.kind_of(checkpoint)
    if kind is None:
        name = checkpoint.get("model_name")
        said = f"config.json says model_name {name!r}" if name else "neither its name nor a config.json says which"
        raise CheckpointError(
            f"DA3METRIC-LARGE and DA3MONO-LARGE have the same keys and shapes, and {said}; put its config.json beside "
            "it, or name the file da3metric-large.safetensors or da3mono-large.safetensors"
        )
    tensors, model = _read(checkpoint, kind == "metric")
    load_strict(model, tensors, WHAT, _depth_anything3.KEYS, allow_unexpected=True)
    return model
