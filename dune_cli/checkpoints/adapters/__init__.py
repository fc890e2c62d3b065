"""One file an adapter: how one published layout of weights becomes a network of ours.

An adapter is a module that defines

    NAME      the layout, as `dune weights info` prints it
    KIND      what `checkpoints.loader.load` calls its networks: "encoder", "two-view", "depth", ...
    WHAT      the network in words, for messages: "a DINOv2 encoder"
    PRIORITY  optional: adapters of a smaller number are asked first; the default is 500, then alphabetical order
    matches(checkpoint) -> bool                  whether a checkpoint has this layout
    describe(checkpoint) -> Description          what it holds; CheckpointError if it contradicts its layout
    build(checkpoint) -> nn.Module               the network with its weights; CheckpointError if they do not fit
    export(checkpoint) -> (tensors, settings)    its tensors by their published names, and what the shapes do not tell
    restore(tensors, settings) -> checkpoint     the inverse of export

One whose network stands on an encoder from a second file also defines ENCODERS (names of the layouts that may hold the
encoder) and encoder_file(checkpoint, file_name) -> str | None (the encoder's published file name; None: no second file
is needed), and its `build` takes (checkpoint, encoder, file_name).

One whose files do not say all by themselves also defines with_surroundings(checkpoint, surroundings) -> checkpoint,
which adds what the names of file and folder and a config.json beside it say; the other functions get that checkpoint.

A converted file (safetensors) says in its header which layout it was made from: `dune.layout` is the adapter's NAME,
`dune.facts` the settings as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch

from dune_cli import plugins
from dune_cli.checkpoints.adapters._common import Description
from dune_cli.checkpoints.state_dict import count_parameters, find_state_dict
from dune_cli.checkpoints.surroundings import UNKNOWN, Surroundings
from dune_cli.errors import CheckpointError

__all__ = ["Description", "all_adapters", "describe", "find", "identify", "to_safetensors"]
LAYOUT, SETTINGS = "dune.layout", "dune.facts"  # keys of the safetensors header
_DEFAULT_PRIORITY = 500
_SHOWN = 12


def all_adapters() -> list[ModuleType]:
    """Every adapter, in the order in which they are asked."""
    modules = [plugins.load(__name__, name) for name in plugins.names(__name__, "matches")]
    return sorted(modules, key=lambda module: getattr(module, "PRIORITY", _DEFAULT_PRIORITY))


def find(
    checkpoint: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    surroundings: Surroundings = UNKNOWN,
) -> tuple[ModuleType, Mapping[str, Any]] | None:
    """The adapter of a file and its checkpoint in the published layout; None for an unknown layout.

    `metadata`: the strings of a safetensors header. `surroundings`: what lies around the file.
    """
    adapters, header = all_adapters(), metadata or {}
    adapter = next((adapter for adapter in adapters if header.get(LAYOUT) == adapter.NAME), None)
    if adapter is not None:
        checkpoint = _restored(adapter, checkpoint, header)
    else:
        adapter = next((adapter for adapter in adapters if adapter.matches(checkpoint)), None)
    if adapter is None:
        return None
    if hasattr(adapter, "with_surroundings"):
        checkpoint = adapter.with_surroundings(checkpoint, surroundings)
    return adapter, checkpoint


def identify(
    checkpoint: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    surroundings: Surroundings = UNKNOWN,
) -> tuple[ModuleType, Mapping[str, Any]]:
    """As `find`. Raises CheckpointError, saying what the file holds, for an unknown layout."""
    known = find(checkpoint, metadata, surroundings)
    if known is None:
        layouts = ", ".join(adapter.NAME for adapter in all_adapters())
        notes = "; ".join(_describe_unknown(checkpoint).notes)
        raise CheckpointError(f"the file has none of the known layouts ({layouts}): {notes}")
    return known


def describe(
    checkpoint: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    surroundings: Surroundings = UNKNOWN,
) -> Description:
    """What the file is; for an unknown layout, its top-level keys and the number of its tensors."""
    known = find(checkpoint, metadata, surroundings)
    if known is None:
        return _describe_unknown(checkpoint)
    adapter, published = known
    description = adapter.describe(published)
    if (metadata or {}).get(LAYOUT) != adapter.NAME:
        return description
    return replace(description, notes=(*description.notes, "converted to safetensors by dune"))


def to_safetensors(
    checkpoint: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    surroundings: Surroundings = UNKNOWN,
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A known file as our own safetensors: (flat tensors in published names, header strings)."""
    adapter, published = identify(checkpoint, metadata, surroundings)
    tensors, settings = adapter.export(published)
    return tensors, {LAYOUT: adapter.NAME, SETTINGS: json.dumps(dict(settings))}


def _restored(adapter: ModuleType, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """A converted file's checkpoint as the published layout has it."""
    try:
        settings = json.loads(metadata.get(SETTINGS, "{}"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the safetensors header's {SETTINGS} is no JSON") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"the safetensors header's {SETTINGS} is no JSON object")
    try:
        return adapter.restore(dict(tensors), settings)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the safetensors header's {SETTINGS} does not fit {adapter.NAME} ({error})") from error


def _describe_unknown(checkpoint: Mapping[str, Any]) -> Description:
    tensors = find_state_dict(checkpoint) or _all_tensors(checkpoint)
    keys = [str(key) for key in checkpoint]
    flat = any("flat_param" in name for name in tensors)
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return Description(
        layout="unknown",
        kind="unknown",
        architecture="unknown",
        teachers=(),
        patch=0,
        width=0,
        parameters=count_parameters(tensors),
        notes=(
            f"top-level keys: {', '.join(keys[:_SHOWN]) or 'none'}{more}",
            f"{len(tensors)} tensors, {count_parameters(tensors):,} parameters",
            *(["one process's share of flattened FSDP parameters: save the whole state dict"] if flat else []),
        ),
    )


def _all_tensors(value: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {prefix: value}
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    items = value.items() if isinstance(value, Mapping) else ()
    return {name: t for key, inner in items for name, t in _all_tensors(inner, f"{prefix}.{key}").items()}
