"""LoMa's files: detector, descriptor and matcher in one flat state dict (docs/models/loma.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common
from dune_cli.checkpoints.state_dict import KeyMap, count_parameters, find_state_dict, load_strict
from dune_cli.errors import CheckpointError
from dune_cli.models.loma import HEAD_WIDTH, LAYERS, LomaNetwork

NAME = "loma"
KIND = "detector-matcher"
WHAT = "LoMa"
PRIORITY = 90
KEYS = KeyMap(rules=(("_detector.", "detector."), ("_descriptor.", "descriptor."), ("", "glue.")))
DINOV2 = "_descriptor.encoder.frozen_dinov2."
_LAYER = re.compile(r"(?:transformers|log_assignment)\.(\d+)\.")
_UNUSED = re.compile(r"num_batches_tracked$|log_assignment\.\d+\.matchability\.")


def matches(checkpoint: Mapping[str, Any]) -> bool:
    return {"_detector.encoder.layers.0.weight", "posenc.Wr.weight"} <= find_state_dict(checkpoint).keys()


def _used(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors that matching needs, in published names: no layer beyond LAYERS, no counters, no matchability."""
    used = {}
    for key, tensor in find_state_dict(checkpoint).items():
        layer = _LAYER.match(key)
        if _UNUSED.search(key) is None and (layer is None or int(layer[1]) < LAYERS):
            used[key] = tensor
    return used


def _read(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], LomaNetwork]:
    state = _used(checkpoint)
    if any(key.startswith(DINOV2) for key in state):
        raise CheckpointError(
            "it holds a LoMa whose descriptor is DeDoDe-G (LoMa-B, -R, -L or -G), which dune does not run; "
            "LoMa-B128 (dune weights pull loma-b128) it does"
        )
    tensors = KEYS.apply(state)
    shapes = _common.Shapes(tensors, KEYS, WHAT)
    width = shapes.of("glue.log_assignment.0.final_proj.weight", 2)[0]
    inputs = shapes.of("glue.input_proj.weight", 2)[1] if shapes.has("glue.input_proj.") else width
    if width % HEAD_WIDTH:
        raise CheckpointError(f"the file does not fit {WHAT}: its width {width} is no multiple of {HEAD_WIDTH}")
    with torch.device("meta"):
        return tensors, LomaNetwork(inputs, width)


def describe(checkpoint: Mapping[str, Any]) -> _common.Description:
    tensors, network = _read(checkpoint)
    config = network.glue.config
    return _common.Description(
        layout=NAME,
        kind=KIND,
        architecture=f"DaD, DeDoDe-B of {config.inputs} channels, and a matcher of {config.layers} layers",
        teachers=(),
        patch=0,
        width=config.width,
        parameters=count_parameters(tensors),
    )


def build(checkpoint: Mapping[str, Any]) -> LomaNetwork:
    """The network with its weights; batch normalisations are folded. CheckpointError if they do not fit."""
    tensors, network = _read(checkpoint)
    load_strict(network, tensors, WHAT, KEYS)
    return network.eval().requires_grad_(False).fold()


def export(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The used tensors in published names, and nothing else to remember."""
    return _used(checkpoint), {}


def restore(tensors: dict[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The published checkpoint again, from what `export` gave."""
    return dict(tensors)
