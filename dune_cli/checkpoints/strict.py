"""The one way weights enter a network: every key present, none left over, every shape right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from dune_cli.checkpoints.keymap import KeyMap
from dune_cli.errors import CheckpointError

SHOWN = 10


def load_strict(
    module: nn.Module, tensors: Mapping[str, torch.Tensor], keymap: KeyMap, what: str, given: tuple[str, ...] = ()
) -> None:
    """Puts `tensors` (our names) into `module` as float32 copies.

    `module` may have been built on the meta device. `given`: prefixes of parts that have their weights already.
    Raises CheckpointError listing missing, unexpected and mis-shaped keys in the published names; `what` names the
    network in the message.
    """
    expected = {key: value for key, value in module.state_dict().items() if not key.startswith(given or "\0")}
    missing = [keymap.published(key) for key in expected if key not in tensors]
    unexpected = [keymap.published(key) for key in tensors if key not in expected]
    misshaped = [
        f"{keymap.published(key)} is {_shape(tensors[key])}, not {_shape(value)}"
        for key, value in expected.items()
        if key in tensors and _shape(tensors[key]) != _shape(value)
    ]
    complaints = [
        _listed(name, keys)
        for name, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
        if keys
    ]
    if complaints:
        raise CheckpointError(f"the file does not fit {what}: " + "; ".join(complaints))
    ready = {key: tensors[key].to(torch.float32, copy=True).contiguous() for key in expected}
    module.load_state_dict(ready, strict=False, assign=True)


def _shape(tensor: torch.Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def _listed(name: str, keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{len(keys)} {'key' if len(keys) == 1 else 'keys'} {name}: {', '.join(keys[:SHOWN])}{more}"
