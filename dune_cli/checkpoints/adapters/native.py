"""Our own safetensors files: the official names, and in the header which layout they were and what it had to say.

Header strings: `dune.layout` (the adapter's name), `dune.facts` (JSON of what the shapes do not tell), and what the
converter adds (`dune.licence`, ...).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dune_cli.checkpoints.adapters import (
    _common,
    dinov2,
    dinov2_classifier,
    dinov2_depth,
    dinov2_segmenter,
    dinov2_training,
    dune,
    dune_mast3r,
    dune_matcher,
    dune_mini,
    mast3r,
    multihmr,
    multihmr_anny,
)
from dune_cli.errors import CheckpointError

NAME = "native"
LAYOUT, FACTS = "dune.layout", "dune.facts"
HEADS = (dinov2_depth, dinov2_segmenter, dinov2_classifier)
HUMAN = (multihmr, multihmr_anny)
_ALL = (dune, dune_mini, dinov2, mast3r, dune_mast3r, dune_matcher, *HEADS, *HUMAN, dinov2_training)
PUBLISHED = {adapter.NAME: adapter for adapter in _ALL}


def matches(tree: Mapping[str, Any], metadata: Mapping[str, str]) -> bool:
    return metadata.get(LAYOUT) in PUBLISHED


def published(tree: Mapping[str, Any], metadata: Mapping[str, str]) -> tuple[Any, dict[str, Any]]:
    """The adapter of the layout that the file was made from, and the tree as that layout has it."""
    adapter = PUBLISHED[metadata[LAYOUT]]
    try:
        facts = json.loads(metadata.get(FACTS, "{}"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the safetensors header's {FACTS} is no JSON") from error
    if not isinstance(facts, dict):
        raise CheckpointError(f"the safetensors header's {FACTS} is no JSON object")
    try:
        return adapter, adapter.restore(dict(tree), facts)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the safetensors header's {FACTS} does not fit {adapter.NAME} ({error})") from error


def describe(tree: Mapping[str, Any], metadata: Mapping[str, str]) -> _common.Description:
    adapter, inner = published(tree, metadata)
    found = adapter.describe(inner, {})
    return replace(found, notes=(*found.notes, "converted to safetensors by dune"))


def header(adapter: Any, facts: Mapping[str, str]) -> dict[str, str]:
    """The header strings for a file of `adapter`'s layout."""
    return {LAYOUT: adapter.NAME, FACTS: json.dumps(dict(facts))}
