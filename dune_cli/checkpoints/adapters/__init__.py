"""One adapter a published layout: a module with

NAME, KIND ("encoder" or "two-view"), matches(tree, metadata), describe(tree, metadata), build(tree) -> module,
export(tree, metadata) -> (tensors, facts) and restore(tensors, facts) -> tree.

Adding a layout is adding its file and naming it in PUBLISHED of `native`, which reads the converted form of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dune_cli.checkpoints.adapters import native
from dune_cli.checkpoints.adapters._common import Description, count, state_dict_of
from dune_cli.errors import CheckpointError

__all__ = ["Description", "describe", "describe_unknown", "identify", "published", "to_safetensors"]
_SHOWN = 12


def identify(tree: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> Any | None:
    """The adapter (a module) whose layout the file has; None for an unknown one."""
    metadata = metadata or {}
    return next((a for a in (native, *native.PUBLISHED.values()) if a.matches(tree, metadata)), None)


def published(tree: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> tuple[Any, Mapping[str, Any]]:
    """The adapter of the published layout and the tree in it, our own safetensors included.

    Raises CheckpointError, saying what the file holds, for an unknown layout.
    """
    adapter = identify(tree, metadata)
    if adapter is None:
        unknown = describe_unknown(tree)
        known = ", ".join(native.PUBLISHED)
        raise CheckpointError(f"the file has none of the known layouts ({known}): {'; '.join(unknown.notes)}")
    return native.published(tree, metadata or {}) if adapter is native else (adapter, tree)


def describe(tree: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> Description:
    """What the file is; for an unknown layout what can be told all the same."""
    adapter = identify(tree, metadata)
    return describe_unknown(tree) if adapter is None else adapter.describe(tree, metadata or {})


def describe_unknown(tree: Mapping[str, Any]) -> Description:
    """Top-level keys, number of tensors and of parameters of a file that no adapter knows."""
    state = state_dict_of(tree) or _all_tensors(tree)
    keys = [str(key) for key in tree]
    flat = any("flat_param" in name for name in state)
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return Description(
        layout="unknown",
        kind="unknown",
        architecture="unknown",
        teachers=(),
        patch=0,
        width=0,
        parameters=count(state),
        notes=(
            f"top-level keys: {', '.join(keys[:_SHOWN]) or 'none'}{more}",
            f"{len(state)} tensors, {count(state):,} parameters",
            *(["one process's share of flattened FSDP parameters: save the whole state dict"] if flat else []),
        ),
    )


def to_safetensors(
    tree: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A known file as our own safetensors: (flat tensors in official names, header strings)."""
    adapter, inner = published(tree, metadata)
    tensors, facts = adapter.export(inner, metadata or {})
    return tensors, native.header(adapter, facts)


def _all_tensors(tree: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return {prefix: tree}
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    return {name: t for key, value in items for name, t in _all_tensors(value, f"{prefix}.{key}").items()}
