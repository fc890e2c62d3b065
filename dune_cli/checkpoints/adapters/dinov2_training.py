"""DINOv2's own training checkpoints: an encoder somewhere under `teacher`, `student`, `backbone`, beside its heads.

`{'teacher': {'backbone.…', 'dino_head.…'}}` is what its trainer's evaluation writes, `{'model': {'teacher.backbone.…',
'student.backbone.…', …}, 'iteration'}` its checkpointer. Source: dinov2/train/train.py, ssl_meta_arch.py (Apache-2.0).
The teacher is the average of the student over time and what is evaluated, so it is taken where both are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from dune_cli.checkpoints.adapters import dinov2
from dune_cli.checkpoints.adapters._common import Description
from dune_cli.checkpoints.state_dict import CONTAINERS, unwrap
from dune_cli.errors import CheckpointError
from dune_cli.models.vit import VisionTransformer

NAME = "dinov2-training"
KIND = "encoder"
WHAT = "a DINOv2 training checkpoint"
PRIORITY = 900
MARK = "patch_embed.proj.weight"
AVERAGED, TRAINED = ("teacher", "ema", "model_ema", "teacher_ema", "ema_model"), ("student",)
PLACES = {*AVERAGED, *TRAINED, *CONTAINERS, "backbone", "encoder", "net", "network", "vit", "trunk"}
BESIDE = ("head", "loss", "center")  # in the names of what training alone needs
DEEPEST = 6
MOST_PLACES = 16


def matches(checkpoint: Mapping[str, Any]) -> bool:
    try:
        state = _all_tensors(checkpoint)
    except CheckpointError:
        return False
    places = _places(state)
    others = [key for key in state if not key.startswith(tuple(places))]
    return bool(places) and all(any(word in key for word in BESIDE) for key in others)


def encoder_state_dict(checkpoint: Mapping[str, Any]) -> tuple[str, dict[str, torch.Tensor]]:
    """Where the encoder lies ("teacher.backbone.") and its state dict. CheckpointError for two that are as good."""
    state = _all_tensors(checkpoint)
    places = sorted(_places(state), key=_rank)
    if len(places) > 1 and _rank(places[0]) == _rank(places[1]):
        listed = ", ".join(place.rstrip(".") for place in places[:4])
        raise CheckpointError(f"the training checkpoint holds several encoders ({listed}); save one of them alone")
    place = places[0]
    return place, {key.removeprefix(place): value for key, value in state.items() if key.startswith(place)}


def _places(state: Mapping[str, torch.Tensor]) -> list[str]:
    """The prefixes under which a whole encoder lies, below containers that training code is known to use."""
    places = [key.removesuffix(MARK) for key in state if key.endswith(MARK)]
    places = [place for place in places if set(place.split(".")[:-1]) <= PLACES]
    if len(places) > MOST_PLACES:
        return []
    inner = {place: {key.removeprefix(place) for key in state if key.startswith(place)} for place in places}
    return [place for place in places if dinov2.is_encoder(inner[place])]


def _rank(place: str) -> int:
    parts = place.split(".")
    if any(part in AVERAGED for part in parts):
        return 0
    return 2 if any(part in TRAINED for part in parts) else 1


def _all_tensors(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Every tensor of nested dictionaries, by the names that lead to it; wrappers' parts are left out."""
    return unwrap(dict(_walk(checkpoint, "", DEEPEST)))


def _walk(checkpoint: Mapping[Any, Any], prefix: str, deeper: int) -> Iterator[tuple[str, torch.Tensor]]:
    for key, value in checkpoint.items():
        if isinstance(key, str) and isinstance(value, torch.Tensor):
            yield prefix + key, value
        elif isinstance(key, str) and isinstance(value, Mapping) and deeper and not key.startswith("optim"):
            yield from _walk(value, f"{prefix}{key}.", deeper - 1)


def describe(checkpoint: Mapping[str, Any]) -> Description:
    place, inner = encoder_state_dict(checkpoint)
    description = dinov2.describe(inner)
    return replace(
        description, layout=NAME, notes=(*description.notes, f"a training checkpoint; its encoder is {place[:-1]}")
    )


def build(checkpoint: Mapping[str, Any]) -> VisionTransformer:
    """The encoder with its weights, the teacher's if there is one. CheckpointError if they do not fit."""
    return dinov2.build(encoder_state_dict(checkpoint)[1])


def export(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The encoder's tensors in the names of DINOv2's hub files, and nothing else to remember."""
    return dinov2.export(encoder_state_dict(checkpoint)[1])


def restore(tensors: dict[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A training checkpoint again, from what `export` gave."""
    return {"teacher": {f"backbone.{key}": value for key, value in tensors.items()}}
