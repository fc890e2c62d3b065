"""A head of `dune train`: {'head': state dict, 'encoder': tuned weights, 'config': sizes, 'card': what is known of it}.

The safetensors header carries config and card as JSON, so that the file says for itself which encoder it reads (by
name and sha256), what its classes are, under which licence it may be used, and what was measured. `encoder` holds those
weights of the encoder that were trained with the head; it is empty for a frozen one.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from dune_cli.checkpoints import registry
from dune_cli.checkpoints.adapters import _common
from dune_cli.checkpoints.state_dict import count_parameters, load_strict
from dune_cli.errors import CheckpointError
from dune_cli.io.json_files import Fields
from dune_cli.models import heads
from dune_cli.models.heads import FeatureHead, FeatureHeadConfig, HeadCard, HeadedEncoder
from dune_cli.models.people_head import PeopleHeadCard
from dune_cli.provenance import Source

NAME = "dune-head"
KIND = "head"
WHAT = "a head on an encoder's features"
ENCODERS = ("dune-mini", "dune", "dinov2", "dinov2-training", "timm")  # layouts of the encoder
PRIORITY = 65
VERBS = {"depth": "dune depth", "segmentation": "dune segment", "classification": "dune classify"}
MOST_CHANNELS, MOST_OUTPUTS, MOST_CELLS = 65_536, 65_536, 4096


def matches(checkpoint: Mapping[str, Any]) -> bool:
    return all(isinstance(checkpoint.get(part), Mapping) for part in ("head", "encoder", "config", "card"))


def checkpoint_of(head: FeatureHead, card: HeadCard, tuned: Mapping[str, torch.Tensor] | None = None) -> dict[str, Any]:
    """A head as this layout has it, with those weights of its encoder that were `tuned`, by name."""
    tensors, encoder = (
        {key: value.detach().cpu().contiguous() for key, value in state.items()}
        for state in (head.state_dict(), tuned or {})
    )
    return {"head": tensors, "encoder": encoder, "config": asdict(head.config), "card": asdict(card)}


def read_config(checkpoint: Mapping[str, Any]) -> FeatureHeadConfig:
    """The head's sizes. CheckpointError for others than a head can have."""
    fields = Fields(checkpoint["config"], "the head's config", CheckpointError)
    try:
        return FeatureHeadConfig(
            task=fields.text("task"),
            kind=fields.text("kind"),
            features=read_features(fields),
            outputs=fields.integer("outputs", low=1, high=MOST_OUTPUTS),
            widths=_whole_numbers(fields, "widths", 3, MOST_CHANNELS),
            place=_whole_numbers(fields, "place", 2, MOST_CELLS),
            upsampling=fields.integer("upsampling", low=1, high=8),
            canonical_focal_px=fields.number("canonical_focal_px", low=1.0, high=1e6),
        )
    except ValueError as error:
        raise CheckpointError(f"the head's config: {error}") from error


def read_features(fields: Fields) -> tuple[heads.Feature, ...]:
    """The features of a head's config. CheckpointError for sizes that no feature has."""
    return tuple(
        heads.Feature(f.text("name"), f.integer("channels", low=1, high=MOST_CHANNELS), f.integer("scale", low=0))
        for f in fields.objects("features")
    )


def _whole_numbers(fields: Fields, name: str, count: int, most: int) -> Any:
    values = fields.items_of(name)
    if len(values) != count or any(type(value) is not int or not 0 <= value <= most for value in values):
        raise CheckpointError(f"{fields.where}: {name} is {str(values)[:80]}, not {count} whole numbers up to {most}")
    return tuple(values)


def read_card(checkpoint: Mapping[str, Any]) -> HeadCard:
    """What is known of the head. CheckpointError where a field is of another type."""
    fields = Fields(checkpoint["card"], "the head's card", CheckpointError)
    sha256, classes, data = encoder_hash(fields), texts_of(fields, "classes"), texts_of(fields, "data")
    palette = fields.items_of("palette", [])
    if not all(isinstance(c, (list, tuple)) and len(c) == 3 and set(map(type, c)) == {int} for c in palette):
        raise CheckpointError(f"{fields.where}: palette must be a list of red, green and blue from 0 to 255")
    if any(not 0 <= value <= 255 for color in palette for value in color):
        raise CheckpointError(f"{fields.where}: palette must be a list of red, green and blue from 0 to 255")
    outputs = read_config(checkpoint).outputs
    for name, values in (("classes", classes), ("palette", palette)):
        if values and len(values) != outputs:
            raise CheckpointError(f"{fields.where}: {len(values)} {name} for a head of {outputs} outputs")
    return HeadCard(
        encoder=fields.text("encoder"),
        encoder_sha256=sha256,
        size_px=fields.integer("size_px", low=1, high=MOST_CHANNELS),
        licence=fields.text("licence"),
        classes=classes,
        palette=tuple(map(tuple, palette)),
        data=data,
        measured=fields.object("measured").value,
    )


def encoder_hash(fields: Fields) -> str:
    """The sha256 of the encoder, of a head's card. CheckpointError for what is none."""
    sha256 = fields.text("encoder_sha256")
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise CheckpointError(f"{fields.where}: encoder_sha256 is not 64 hexadecimal digits")
    return sha256


def texts_of(fields: Fields, name: str) -> tuple[str, ...]:
    """A list of texts of a head's card, () where it has none. CheckpointError for other values."""
    texts = fields.items_of(name, [])
    if not all(isinstance(text, str) for text in texts):
        raise CheckpointError(f"{fields.where}: {name} must be a list of texts")
    return tuple(texts)


def notes_of(
    features: Sequence[heads.Feature], card: HeadCard | PeopleHeadCard, tuned: bool = False
) -> tuple[str, ...]:
    """What a head's description says of its encoder and its data."""
    return (
        f"reads {', '.join(feature.name for feature in features)} of {card.encoder}",
        f"the encoder's sha256: {card.encoder_sha256}{', tuned with the head' if tuned else ''}",
        *(f"data: {text}" for text in card.data),
    )


def describe(checkpoint: Mapping[str, Any]) -> _common.Description:
    config, card = read_config(checkpoint), read_card(checkpoint)
    outputs = "" if config.task == "depth" else f", {config.outputs} classes"
    return _common.Description(
        layout=NAME,
        kind=KIND,
        architecture=f"{config.kind} head for {config.task}{outputs}",
        teachers=(),
        patch=0,
        width=0,
        parameters=count_parameters(checkpoint["head"]),
        notes=notes_of(config.features, card, tuned=bool(checkpoint["encoder"])),
    )


def encoder_file(checkpoint: Mapping[str, Any], file_name: str) -> str:
    """The published file of the head's encoder, or the name of the file that it was trained on."""
    return file_of_encoder(read_card(checkpoint).encoder)


def file_of_encoder(name: str) -> str:
    """The file of the encoder that a card names."""
    entry = registry.find(name)
    return entry.file if entry is not None else name


def build(
    checkpoint: Mapping[str, Any], encoder: nn.Module, file_name: str = "", task: str | None = None
) -> HeadedEncoder:
    """The head on `encoder`, whose `source` tells its file; `task`: the one that is asked for.

    CheckpointError for a head of another task, for another encoder than the one that the head was trained on, and if
    the weights do not fit.
    """
    config, card = read_config(checkpoint), read_card(checkpoint)
    if task is not None and config.task != task:
        raise CheckpointError(f"it holds a head for {config.task}, not for {task}; {VERBS[config.task]} takes it")
    encoder = checked_encoder(encoder, card, config.features)
    head = heads.build_head(config)
    load_strict(head, dict(checkpoint["head"]), WHAT)
    if checkpoint["encoder"]:
        encoder = _tuned(encoder, checkpoint["encoder"])
    if isinstance(head, heads.PyramidHead):
        head.to(memory_format=torch.channels_last)
    return HeadedEncoder(encoder, head, card)


def checked_encoder(
    encoder: nn.Module, card: HeadCard | PeopleHeadCard, features: Sequence[heads.Feature]
) -> nn.Module:
    """The network under the encoder's projectors, with its source. CheckpointError unless it is the one that the head
    was trained on, and gives its features."""
    found, encoder = encoder.source, heads.bare(encoder)
    encoder.source = found
    if found.sha256 != card.encoder_sha256:
        raise CheckpointError(
            f"the head was trained on the encoder {card.encoder} (sha256 {card.encoder_sha256[:12]}...); "
            f"{found.name} (sha256 {str(found.sha256)[:12]}...) has other features: give that encoder with --encoder"
        )
    try:
        given = heads.measure(encoder, [feature.name for feature in features])
    except ValueError as error:
        raise CheckpointError(f"the head does not fit the encoder {found.name}: {error}") from error
    if given != features:
        raise CheckpointError(f"the head reads {list(features)[:4]}, the encoder {found.name} gives others")
    return encoder


def _tuned(encoder: nn.Module, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of the encoder with the weights that were trained with the head; its file's hash no longer names it."""
    tuned = copy.deepcopy(encoder)
    own = tuned.state_dict()
    wrong = [key for key, value in weights.items() if key not in own or own[key].shape != value.shape]
    if wrong:
        raise CheckpointError(f"the file does not fit {WHAT}: {wrong[0]} of the tuned encoder is unexpected")
    with torch.no_grad():
        tuned.load_state_dict({key: value.to(own[key].dtype) for key, value in weights.items()}, strict=False)
    tuned.source = Source(f"{encoder.source.name}, tuned", None, encoder.source.licence)
    return tuned


def export(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors, those of the head and of the encoder by their prefix; config and card as JSON."""
    tensors = {f"{part}.{key}": value for part in ("head", "encoder") for key, value in checkpoint[part].items()}
    return tensors, {part: json.dumps(checkpoint[part], sort_keys=True) for part in ("config", "card")}


def restore(tensors: dict[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint again, from what `export` gave."""
    read = read_settings(settings, WHAT)
    parts: dict[str, dict[str, torch.Tensor]] = {"head": {}, "encoder": {}}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise CheckpointError(f"the file does not fit {WHAT}: {key} is unexpected")
        parts[part][name] = value
    return {**parts, **read}


def read_settings(settings: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Config and card from a safetensors header. CheckpointError, which calls the file `what`, without them."""
    try:
        read = {part: json.loads(settings[part]) for part in ("config", "card")}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the safetensors header of {what} has no config or card") from error
    if not all(isinstance(value, dict) for value in read.values()):
        raise CheckpointError(f"the safetensors header of {what} has no config or card")
    return read
