"""Defaults of a command's options out of configuration files, before its command line is parsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dune_cli import console, provenance
from dune_cli.errors import DuneError

if TYPE_CHECKING:
    from dune_cli.config import ConfiguredValue

GROUP = "config"  # whose verbs mend files that are wrong
ANY_COMMAND = "encode"  # has the options that the top of a file sets


@dataclass(frozen=True)
class ConfiguredDefaults:
    """Values by the names of parameters, as Click's default_map, and where each comes from."""

    by_parameter: dict[str, Any] = field(default_factory=dict)
    values: dict[str, ConfiguredValue] = field(default_factory=dict)  # by parameter
    options: dict[str, str] = field(default_factory=dict)  # "--size", by parameter

    def tell(self, ctx: click.Context) -> None:
        """Puts those that are in effect into the provenance; those of a project's file also into a note."""
        used = {name: one for name, one in self.values.items() if _is_default(ctx, name)}
        provenance.configured[:] = [
            {"option": self.options[name], "value": one.file.values[one.key], "file": str(one.file.path)}
            for name, one in used.items()
        ]
        texts = [f"{self.options[name]} {_shown(one.value)}" for name, one in used.items() if one.file.of_project]
        if texts:
            path = next(one.file.path for one in used.values() if one.file.of_project)
            console.note(f"set by {path}: {', '.join(texts)}")


def defaults(
    command: click.Command, words: Sequence[str], args: Sequence[str], parent: click.Context | None
) -> ConfiguredDefaults:
    """What the files set of a command's options. Nothing for `dune config`; help is also shown where a file is wrong.
    UserError for a file that is wrong."""
    if parent is None or words[:1] == [GROUP]:
        return ConfiguredDefaults()
    from dune_cli import config

    try:
        values = config.configured(config.read_all(), options_of(parent.find_root().command))
    except DuneError:
        if {"--help", "-h"} & set(args):
            return ConfiguredDefaults()
        raise
    config.apply_environment(values)
    options = config.keys_of(command.params)
    found = config.for_command(words, options, values)
    names = {key: options[key].name for key in found}
    return ConfiguredDefaults(
        {names[key]: one.value for key, one in found.items()},
        {names[key]: one for key, one in found.items()},
        {names[key]: f"--{key}" for key in found},
    )


def words_of(info_name: str | None, parent: click.Context | None) -> list[str]:
    """The words of a command after `dune`."""
    words = [] if info_name is None else [info_name]
    while parent is not None and parent.parent is not None:
        words.insert(0, str(parent.info_name))
        parent = parent.parent
    return words


def options_of(root: click.Command) -> Any:
    """A function from the words of a command to its options that files may set; None where there is no such command.
    Without words: the options that the top of a file sets."""
    from dune_cli import config

    def find(words: Sequence[str]) -> Mapping[str, Any] | None:
        command = root
        for word in words or [ANY_COMMAND]:
            found = command.get_command(click.Context(command), word) if isinstance(command, click.Group) else None
            if found is None:
                return None
            command = found
        if isinstance(command, click.Group):
            return None
        keys = config.keys_of(command.params)
        return keys if words else {name: keys[name] for name in config.SHARED}

    return find


def _is_default(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is ParameterSource.DEFAULT_MAP


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
