"""ALIKED-n16 with its LightGlue in one file, as it comes with dune: {'aliked': state dict, 'glue': state dict}.

Written by weights/build/bake_aliked_lightglue.py. Tensors have their published names behind `aliked.` and `glue.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common
from dune_cli.checkpoints.state_dict import count_parameters, load_strict
from dune_cli.errors import CheckpointError
from dune_cli.models.aliked import GLUE, AlikedLightGlueNetwork

NAME = "aliked-lightglue"
KIND = "keypoints"
WHAT = "ALIKED and LightGlue"
PRIORITY = 80
PARTS = ("aliked", "glue")


def matches(checkpoint: Mapping[str, Any]) -> bool:
    return all(isinstance(checkpoint.get(part), Mapping) for part in PARTS)


def describe(checkpoint: Mapping[str, Any]) -> _common.Description:
    return _common.Description(
        layout=NAME,
        kind=KIND,
        architecture=f"ALIKED-n16 and LightGlue of width {GLUE.width}, {GLUE.layers} layers",
        teachers=(),
        patch=0,
        width=GLUE.width,
        parameters=sum(count_parameters(checkpoint[part]) for part in PARTS),
    )


def build(checkpoint: Mapping[str, Any]) -> AlikedLightGlueNetwork:
    """The networks with their weights; ALIKED's batch normalisations are folded. CheckpointError if they do not fit."""
    network = AlikedLightGlueNetwork()
    for part in PARTS:
        load_strict(getattr(network, part), dict(checkpoint[part]), f"{WHAT} ({part})")
    network.eval().requires_grad_(False).aliked.fold()
    return network


def export(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors with the part before their names."""
    return {f"{part}.{key}": value for part in PARTS for key, value in checkpoint[part].items()}, {}


def restore(tensors: dict[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint again, from what `export` gave."""
    parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in PARTS}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise CheckpointError(f"{WHAT}: the tensor {key} belongs to neither {' nor '.join(PARTS)}")
        parts[part][name] = value
    return parts
