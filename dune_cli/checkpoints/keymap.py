"""Key maps: one declarative table from a published layout's names to ours."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dune_cli.errors import CheckpointError

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
