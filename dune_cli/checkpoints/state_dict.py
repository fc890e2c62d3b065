"""State dicts: finding one in a checkpoint, key maps between layouts, and the strict load into a network."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dune_cli.errors import CheckpointError

CONTAINERS = ("model", "state_dict")  # keys under which checkpoints keep their state dict
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
_FIELD = re.compile(r"\{(\w+)\}")
_SHOWN = 10


@dataclass(frozen=True)
class KeyMap:
    """How a layout's keys become ours.

    rules: (published prefix, our prefix), the first that fits wins; `{i}` stands for a number. aliases: the same, for
    second copies of a tensor, taken only where the first is absent. ignored: published prefixes that are unused.
    A key that nothing fits keeps its name, and the strict load reports it.
    """

    rules: tuple[tuple[str, str], ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def apply(self, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The state dict in our names, without what is ignored."""
        ours: dict[str, torch.Tensor] = {}
        second: dict[str, torch.Tensor] = {}
        for key, tensor in without(state_dict, self.ignored).items():
            if (alias := _translate(key, self.aliases)) is not None:
                second[alias] = tensor
            else:
                ours[_translate(key, self.rules) or key] = tensor
        return second | ours

    def published(self, key: str) -> str:
        """Our key in the layout's words, for messages; fields that ours lack are 0."""
        return _translate(key, tuple((ours, theirs) for theirs, ours in self.rules)) or key


def load_strict(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    what: str,
    keymap: KeyMap = KeyMap(),
    *,
    given: tuple[str, ...] = (),
    allow_unexpected: bool = False,
) -> None:
    """Puts `state_dict` (our names) into `module`, cast to the module's number types. The only way weights enter one.

    `module` may have been built on the meta device. `given`: prefixes of parts that have their values already.
    `allow_unexpected`: tensors that the module lacks are left out.
    Raises CheckpointError listing missing, unexpected and mis-shaped keys in the published names of `keymap`; `what`
    names the network in the message.
    """
    tensors = {key: value for key, value in state_dict.items() if isinstance(value, torch.Tensor)}
    expected = {key: value for key, value in module.state_dict().items() if not key.startswith(given or "\0")}
    problems = {
        "missing": [keymap.published(key) for key in expected if key not in tensors],
        "unexpected": [keymap.published(key) for key in tensors if key not in expected and not allow_unexpected],
        "of another shape": [
            f"{keymap.published(key)} is {_shape(tensors[key])}, not {_shape(value)}"
            for key, value in expected.items()
            if key in tensors and _shape(tensors[key]) != _shape(value)
        ],
    }
    if any(problems.values()):
        complaints = "; ".join(_listed(name, keys) for name, keys in problems.items() if keys)
        raise CheckpointError(f"the file does not fit {what}: {complaints}")
    values = {key: tensors[key].to(value.dtype, copy=True).contiguous() for key, value in expected.items()}
    module.load_state_dict(values, strict=False, assign=any(value.is_meta for value in expected.values()))


def find_state_dict(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The state dict inside a checkpoint, without wrapper prefixes; empty if there is none.

    It is the value of `model` or `state_dict`, or the checkpoint itself.
    """
    inner = next((checkpoint[name] for name in CONTAINERS if isinstance(checkpoint.get(name), Mapping)), checkpoint)
    return unwrap({key: value for key, value in inner.items() if isinstance(value, torch.Tensor)})


def unwrap(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict without the path parts that wrappers (DDP, FSDP, torch.compile) left, such as `module.`.

    Raises CheckpointError if two keys become one.
    """
    plain: dict[str, torch.Tensor] = {}
    for key, tensor in state_dict.items():
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in plain:
            raise CheckpointError(f"the file holds {name!r} twice, with and without a wrapper's prefix")
        plain[name] = tensor
    return plain


def without(state_dict: Mapping[str, torch.Tensor], prefixes: Iterable[str]) -> dict[str, torch.Tensor]:
    """The tensors whose keys start with none of `prefixes`."""
    unwanted = tuple(prefixes)
    return {key: tensor for key, tensor in state_dict.items() if not key.startswith(unwanted)}


def count_parameters(state_dict: Mapping[str, torch.Tensor]) -> int:
    """Number of values."""
    return sum(tensor.numel() for tensor in state_dict.values())


@functools.lru_cache(maxsize=1024)
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(_FIELD.sub(r"(?P<\1>\\d+)", template.replace(".", r"\.")))


def _translate(key: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    for source, target in rules:
        if match := _pattern(source).match(key):
            fields = match.groupdict()
            return _FIELD.sub(lambda name, fields=fields: fields.get(name[1], "0"), target) + key[match.end() :]
    return None


def _shape(tensor: torch.Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def _listed(name: str, keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{len(keys)} {'key' if len(keys) == 1 else 'keys'} {name}: {', '.join(keys[:_SHOWN])}{more}"
