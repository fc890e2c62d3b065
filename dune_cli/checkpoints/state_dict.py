"""The one way weights enter a network: every key present, none left over, every shape right."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

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


# Key maps: one declarative table from a published layout's names to ours.


WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class KeyMap:
    """How a layout's keys become ours.

    rules: (published prefix, our prefix), the first that fits wins; `{i}` stands for a number. aliases: the same, for
    second copies of a tensor, taken only where the first is absent. ignored: published prefixes that are unused.
    A key that nothing fits keeps its name, and the strict load reports it.
    """

    rules: tuple[tuple[str, str], ...]
    aliases: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def apply(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The state dict in our names, without what is ignored."""
        kept = {key: tensor for key, tensor in state.items() if not key.startswith(self.ignored)}
        ours: dict[str, torch.Tensor] = {}
        second: dict[str, torch.Tensor] = {}
        for key, tensor in kept.items():
            if (alias := _translate(key, self.aliases)) is not None:
                second[alias] = tensor
            else:
                ours[_translate(key, self.rules) or key] = tensor
        return second | ours

    def published(self, key: str) -> str:
        """Our key in the layout's words, for messages; fields that ours lack are 0."""
        return _translate(key, tuple((ours, theirs) for theirs, ours in self.rules)) or key


@functools.lru_cache(maxsize=1024)
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(_FIELD.sub(r"(?P<\1>\\d+)", template.replace(".", r"\.")))


def _translate(key: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    for source, target in rules:
        if found := _pattern(source).match(key):
            fields = found.groupdict()
            return _FIELD.sub(lambda name, fields=fields: fields.get(name[1], "0"), target) + key[found.end() :]
    return None


def unwrapped(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict without the path parts that wrappers (DDP, FSDP, torch.compile) left, such as `module.`.

    Raises CheckpointError if two keys become one.
    """
    plain: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in plain:
            raise CheckpointError(f"the file holds {name!r} twice, with and without a wrapper's prefix")
        plain[name] = tensor
    return plain
