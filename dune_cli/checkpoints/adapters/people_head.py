"""A head of `dune train human`: {'people_head': state dict, 'config': sizes, 'card': what is known of it}.

The safetensors header carries config and card as JSON, so that the file says for itself which encoder it reads (by name
and sha256), under which licence it may be used, and what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from dune_cli.checkpoints.adapters import _common, head
from dune_cli.checkpoints.state_dict import count_parameters, load_strict
from dune_cli.errors import CheckpointError
from dune_cli.io.json_files import Fields
from dune_cli.models import heads
from dune_cli.models.people_head import HeadedPeople, PeopleHead, PeopleHeadCard, PeopleHeadConfig

NAME = "dune-people-head"
KIND = "human"
WHAT = "a head for people on an encoder's features"
ENCODERS = head.ENCODERS
PRIORITY = 66
MOST_JOINTS, MOST_WIDTH, MOST_DEPTH, MOST_SIZE_PX = 512, 8192, 64, 8192


def matches(checkpoint: Mapping[str, Any]) -> bool:
    return all(isinstance(checkpoint.get(part), Mapping) for part in ("people_head", "config", "card"))


def checkpoint_of(network: PeopleHead, card: PeopleHeadCard) -> dict[str, Any]:
    """A head as this layout has it."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    return {"people_head": tensors, "config": asdict(network.config), "card": asdict(card)}


def read_config(checkpoint: Mapping[str, Any]) -> PeopleHeadConfig:
    """The head's sizes. CheckpointError for others than a head can have."""
    fields = Fields(checkpoint["config"], "the head's config", CheckpointError)
    joints = fields.items_of("joints")
    if not 1 <= len(joints) <= MOST_JOINTS or not all(isinstance(name, str) for name in joints):
        raise CheckpointError(f"{fields.where}: joints must be 1 to {MOST_JOINTS} names")
    try:
        return PeopleHeadConfig(
            features=head.read_features(fields),
            joints=tuple(joints),
            size_px=fields.integer("size_px", low=1, high=MOST_SIZE_PX),
            width=fields.integer("width", low=1, high=MOST_WIDTH),
            hidden=fields.integer("hidden", low=1, high=MOST_WIDTH),
            depth=fields.integer("depth", low=1, high=MOST_DEPTH),
        )
    except ValueError as error:
        raise CheckpointError(f"the head's config: {error}") from error


def read_card(checkpoint: Mapping[str, Any]) -> PeopleHeadCard:
    """What is known of the head. CheckpointError where a field is of another type."""
    fields = Fields(checkpoint["card"], "the head's card", CheckpointError)
    return PeopleHeadCard(
        encoder=fields.text("encoder"),
        encoder_sha256=head.encoder_hash(fields),
        licence=fields.text("licence"),
        assumed_height=fields.number("assumed_height", low=0.1, high=3.0),
        assumed_height_sd=fields.number("assumed_height_sd", low=0.0, high=1.0),
        data=head.texts_of(fields, "data"),
        measured=fields.object("measured").value,
    )


def describe(checkpoint: Mapping[str, Any]) -> _common.Description:
    config, card = read_config(checkpoint), read_card(checkpoint)
    return _common.Description(
        layout=NAME,
        kind=KIND,
        architecture=f"head for people, {config.size_px} px, {len(config.joints)} joints of Anny",
        teachers=(),
        patch=0,
        width=config.width,
        parameters=count_parameters(checkpoint["people_head"]),
        notes=head.notes_of(config.features, card),
    )


def encoder_file(checkpoint: Mapping[str, Any], file_name: str) -> str:
    """The published file of the head's encoder, or the name of the file that it was trained on."""
    return head.file_of_encoder(read_card(checkpoint).encoder)


def build(checkpoint: Mapping[str, Any], encoder: nn.Module, file_name: str = "") -> HeadedPeople:
    """The head on `encoder`, whose `source` tells its file. CheckpointError for another encoder than the one that the
    head was trained on, and if the weights do not fit."""
    config, card = read_config(checkpoint), read_card(checkpoint)
    encoder = head.checked_encoder(encoder, card, config.features)
    if config.size_px % encoder.patch:
        raise CheckpointError(f"its square of {config.size_px} px is no multiple of the patch of {encoder.patch} px")
    network = PeopleHead(config)
    load_strict(network, dict(checkpoint["people_head"]), WHAT)
    return HeadedPeople(heads.bare(encoder), network, card)


def export(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors; config and card as JSON."""
    return dict(checkpoint["people_head"]), {
        part: json.dumps(checkpoint[part], sort_keys=True) for part in ("config", "card")
    }


def restore(tensors: dict[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint again, from what `export` gave."""
    return {"people_head": tensors, **head.read_settings(settings, WHAT)}
