"""What the two Multi-HMR layouts share: their container, their arguments, the sizes of the person transformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common
from dune_cli.checkpoints.adapters._common import Shapes
from dune_cli.checkpoints.state_dict import find_state_dict, without
from dune_cli.errors import CheckpointError
from dune_cli.models.multihmr_common import PersonTransformerConfig

CONTAINER = "model_state_dict"
HEAD_CHANNELS = 32
LEFTOVERS = ("smpl_layer.", "smplx_layer.")  # a body model that was saved with the network


def state_dict_of(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The state dict of {'args': ..., 'model_state_dict': ..., 'epoch': ...}, without wrapper prefixes."""
    inner = checkpoint.get(CONTAINER)
    return find_state_dict(inner if isinstance(inner, Mapping) else checkpoint)


def arguments(checkpoint: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Those of `names` that the file's `args` state; empty where it has no args."""
    stated = {name: _common.field(checkpoint.get("args"), name) for name in names}
    return {name: value for name, value in stated.items() if value is not None}


def number(given: Mapping[str, Any], name: str, default: int | None, what: str) -> int | None:
    """A whole positive number out of the arguments; item 0 of a list."""
    value = given.get(name, default)
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < 1:
        raise CheckpointError(f"{what}: its args have {name}={value!r}; a whole positive number is needed")
    return int(value)


def check_size(given: Mapping[str, Any], size_px: int, what: str) -> None:
    """CheckpointError where `img_size` (a list or a number) is not what the shapes say."""
    stated = number(given, "img_size", size_px, what)
    if stated != size_px:
        raise CheckpointError(f"{what}: its args say images of {stated} px, its weights are for {size_px} px")


def transformer_config(shapes: Shapes, prefix: str, heads: int | None, what: str) -> PersonTransformerConfig:
    """The sizes of the layers under `prefix`. Without a stated number, heads have 32 channels
    (docs/models/multihmr.md)."""
    layers = f"{prefix}layers."
    rows, width = shapes.of(f"{layers}0.0.fn.to_qkv.weight", 2)
    inner = rows // 3
    heads = heads or max(1, inner // HEAD_CHANNELS)
    if rows % 3 or inner % heads:
        raise CheckpointError(f"{what}: its person transformer has {rows} rows of q, k, v for {heads} heads")
    return PersonTransformerConfig(
        width=width,
        context=shapes.of(f"{layers}0.1.fn.to_kv.weight", 2)[1],
        inner=inner,
        heads=heads,
        hidden=shapes.of(f"{layers}0.2.fn.net.0.weight", 2)[0],
        depth=shapes.depth(layers),
    )


def hidden_widths(shapes: Shapes, prefixes: tuple[str, ...]) -> dict[str, int]:
    """The width inside each MLP, by the last part of its name ("encoder.mlp_det" -> "mlp_det")."""
    return {prefix.rpartition(".")[2]: shapes.of(f"{prefix}.0.weight", 2)[0] for prefix in prefixes}


def export(
    checkpoint: Mapping[str, Any], ignored: tuple[str, ...], names: tuple[str, ...]
) -> tuple[dict, dict[str, Any]]:
    """The used tensors in official names, and the arguments that matter."""
    settings = {
        name: list(value) if isinstance(value, tuple) else value for name, value in arguments(checkpoint, names).items()
    }
    return without(state_dict_of(checkpoint), ignored), settings


def restore(tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The published checkpoint again, from what `export` gave."""
    return {"args": dict(settings), CONTAINER: dict(tensors)}
