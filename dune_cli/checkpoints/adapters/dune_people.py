"""The people networks that come with dune: {'people': weights by 'NETWORK/NAME', 'graphs': their layers as data}.

Written by weights/build/bake_dune_people.py. The safetensors header carries the layers of both networks as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common
from dune_cli.checkpoints.state_dict import count_parameters
from dune_cli.errors import CheckpointError
from dune_cli.models import graph
from dune_cli.models.people_poses import BLAZEPOSE_OUTPUTS, MOVENET_OUTPUTS, PeopleNetwork

NAME = "dune-people"
KIND = "human"
WHAT = "networks that find people and their joints"
PRIORITY = 70
NETWORKS = {"movenet": MOVENET_OUTPUTS, "blazepose": BLAZEPOSE_OUTPUTS}  # and how many outputs each has


def matches(checkpoint: Mapping[str, Any]) -> bool:
    return isinstance(checkpoint.get("people"), Mapping) and isinstance(checkpoint.get("graphs"), Mapping)


def describe(checkpoint: Mapping[str, Any]) -> _common.Description:
    return _common.Description(
        layout=NAME,
        kind=KIND,
        architecture="MoveNet MultiPose and BlazePose full",
        teachers=(),
        patch=0,
        width=0,
        parameters=count_parameters(checkpoint["people"]),
        notes=("33 landmarks a person, in pixels and in metres; the body is fitted to them",),
    )


def build(checkpoint: Mapping[str, Any]) -> PeopleNetwork:
    """The networks with their weights. CheckpointError if they do not fit."""
    return PeopleNetwork(*(_network(checkpoint, name) for name in NETWORKS))


def _network(checkpoint: Mapping[str, Any], name: str) -> graph.Graph:
    mine = f"{name}/"
    weights = {k.removeprefix(mine): v for k, v in checkpoint["people"].items() if k.startswith(mine)}
    try:
        made = graph.build(checkpoint["graphs"].get(name) or {}, weights)
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{WHAT}: {name} is no network ({error})") from error
    if (len(made.inputs), len(made.outputs)) != (1, NETWORKS[name]):
        raise CheckpointError(f"{WHAT}: {name} has {len(made.inputs)} inputs and {len(made.outputs)} outputs")
    return made


def export(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors, and the layers as JSON."""
    return dict(checkpoint["people"]), {"graphs": json.dumps(dict(checkpoint["graphs"]), sort_keys=True)}


def restore(tensors: dict[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint again, from what `export` gave."""
    try:
        graphs = json.loads(settings["graphs"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the safetensors header of {WHAT} has no layers") from error
    if not isinstance(graphs, dict):
        raise CheckpointError(f"the safetensors header of {WHAT} has no layers by network")
    return {"people": tensors, "graphs": graphs}
