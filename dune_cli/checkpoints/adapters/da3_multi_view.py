"""Depth Anything 3 for several views (DA3-SMALL, DA3-BASE): docs/models/depth-anything-3.md, "Files"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common, _depth_anything3
from dune_cli.checkpoints.state_dict import count_parameters, find_state_dict, load_strict
from dune_cli.models.da3_backbone import Da3Backbone
from dune_cli.models.da3_cameras import CameraDecoder, CameraEncoder
from dune_cli.models.da3_heads import Da3Head
from dune_cli.models.depth_anything3 import MultiViewNetwork

NAME = "da3-multi-view"
KIND = "multi-view"
WHAT = "a multi-view model of Depth Anything 3"
PRIORITY = 20

with_surroundings = _depth_anything3.with_surroundings


def matches(checkpoint: Mapping[str, Any]) -> bool:
    return _depth_anything3.is_nested(checkpoint) or _depth_anything3.has(checkpoint, _depth_anything3.MULTI_VIEW)


def _read(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], MultiViewNetwork]:
    tensors = _depth_anything3.tensors_of(checkpoint, WHAT)
    backbone, head = _depth_anything3.sizes(checkpoint, tensors, True, WHAT)
    has_encoder = any(key.startswith("camera_encoder.") for key in tensors)
    with torch.device("meta"):
        network = MultiViewNetwork(
            Da3Backbone(backbone),
            Da3Head(head, backbone.vit.patch),
            CameraEncoder(backbone.vit.width) if has_encoder else None,
            CameraDecoder(2 * backbone.vit.width),
        )
    return tensors, network


def describe(checkpoint: Mapping[str, Any]) -> _common.Description:
    tensors, network = _read(checkpoint)
    backbone, used = network.backbone, network.state_dict().keys()
    return _common.Description(
        layout=NAME,
        kind=KIND,
        architecture=f"Depth Anything 3, {_common.vit_summary(backbone.config)}, views joined from block "
        f"{backbone.first_global} on, DualDPT head of {network.head.config.features} features",
        teachers=(),
        patch=backbone.patch,
        width=backbone.width,
        parameters=count_parameters({key: tensor for key, tensor in tensors.items() if key in used}),
        notes=(
            *((f"model name {checkpoint['model_name']}",) if checkpoint.get("model_name") else ()),
            "takes given poses" if network.camera_encoder is not None else "takes no given poses",
        ),
    )


def build(checkpoint: Mapping[str, Any]) -> MultiViewNetwork:
    """The network with its weights. CheckpointError if they do not fit; keys that it does not know are ignored."""
    tensors, network = _read(checkpoint)
    load_strict(network, tensors, WHAT, _depth_anything3.KEYS, allow_unexpected=True)
    return network


def export(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """All tensors in official names, the model's name and its configuration."""
    return find_state_dict(checkpoint), {key: checkpoint.get(key) for key in ("model_name", "config")}


def restore(tensors: dict[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint again, from what `export` gave."""
    return {"state_dict": dict(tensors), **{key: settings.get(key) for key in ("model_name", "config")}}
