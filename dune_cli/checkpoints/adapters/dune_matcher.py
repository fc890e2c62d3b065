"""The head of `dune` and of `xfeat-lighterglue`: {'matcher': state dict, 'settings': what the shapes do not tell}."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common
from dune_cli.checkpoints.state_dict import count_parameters, load_strict
from dune_cli.errors import CheckpointError
from dune_cli.models.lightglue import LightGlueConfig
from dune_cli.models.match_head import CHANNELS, MatchHead, MatchHeadConfig

NAME = "dune-matcher"
KIND = "matcher"
WHAT = "a matching head"
PRIORITY = 60
BACKBONE = "xfeat."


def matches(checkpoint: Mapping[str, Any]) -> bool:
    return isinstance(checkpoint.get("matcher"), Mapping) and isinstance(checkpoint.get("settings"), Mapping)


def checkpoint_of(head: MatchHead) -> dict[str, Any]:
    """The head as this layout has it. Its LightGlue always has a matchability, so no setting says so."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in head.state_dict().items()}
    settings = asdict(head.config)
    del settings["glue"]["matchability"]
    return {"matcher": tensors, "settings": settings}


def _config(checkpoint: Mapping[str, Any]) -> MatchHeadConfig:
    """The settings, each of the type that it must have. CheckpointError for others."""
    settings = dict(checkpoint["settings"])
    glue = settings.pop("glue", None)
    context = settings.pop("context", None)
    if not isinstance(glue, Mapping) or not isinstance(context, (list, tuple)) or not set(context) <= set(CHANNELS):
        raise CheckpointError(f"{WHAT}: its settings name no context out of {', '.join(CHANNELS)}, or no network")
    return MatchHeadConfig(
        context=tuple(context), glue=_checked(LightGlueConfig, glue), **_numbers(MatchHeadConfig, settings)
    )


def _has_backbone(tensors: Mapping[str, torch.Tensor]) -> bool:
    return any(key.startswith(BACKBONE) for key in tensors)


def _checked(kind: type, settings: Mapping[str, Any]) -> Any:
    return kind(**_numbers(kind, settings))


def _numbers(kind: type, settings: Mapping[str, Any]) -> dict[str, int | float]:
    known = {f.name: f.type for f in fields(kind) if f.type in ("int", "float")}
    if set(settings) != set(known):
        raise CheckpointError(f"{WHAT}: its settings are {sorted(settings)}, not {sorted(known)}")
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int if known[name] == "int" else (int, float)) or value < 0:
            raise CheckpointError(f"{WHAT}: its setting {name} is {value!r}, not a number of the kind {known[name]}")
    return dict(settings)


def describe(checkpoint: Mapping[str, Any]) -> _common.Description:
    config, tensors = _config(checkpoint), checkpoint["matcher"]
    return _common.Description(
        layout=NAME,
        kind=KIND,
        architecture=f"XFeat's keypoints and LightGlue of width {config.glue.width}, {config.glue.layers} layers",
        teachers=(),
        patch=0,
        width=config.glue.width,
        parameters=count_parameters(tensors),
        notes=(
            "XFeat's backbone is in it" if _has_backbone(tensors) else "runs on a dune-mini of the stem xfeat+lite",
            f"context: {', '.join(config.context) or 'none'}",
            f"{config.max_keypoints} keypoints at a long side of {config.long_side_px} px",
        ),
    )


def build(checkpoint: Mapping[str, Any]) -> MatchHead:
    """The head with its weights. CheckpointError if they do not fit."""
    head = MatchHead(_config(checkpoint), _has_backbone(checkpoint["matcher"]))
    load_strict(head, dict(checkpoint["matcher"]), WHAT)
    return head.requires_grad_(False)


def export(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors, and the settings as JSON."""
    return dict(checkpoint["matcher"]), {"settings": json.dumps(checkpoint["settings"])}


def restore(tensors: dict[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint again, from what `export` gave."""
    try:
        settings = json.loads(settings["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the safetensors header of {WHAT} has no settings") from error
    return {"matcher": tensors, "settings": settings}
