"""Defaults of options in files: config.toml of the user, and dune.toml beside the data (docs/conventions.md,
"Configuration").

    device = "cuda"            # of every command that has the option
    weights = "/data/weights"  # as DUNE_WEIGHTS; in the user's file only
    offline = true             # as DUNE_OFFLINE

    [depth]                    # of `dune depth`
    size = 518

    [eval.pairs]
    matchers = ["sift", "aliked-lightglue"]

The command line wins over the environment, that over the project's file, that over the user's. A project's file is the
first dune.toml in the working directory or above it. What writes files or accepts licences is no key.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.runtime import check_device

PROJECT_FILE = "dune.toml"
SHARED = ("device", "dtype")  # options of many commands
TRUSTED_OWNERS = (0,)  # of a project file, beside the user: root
ENVIRONMENT = {"weights": "DUNE_WEIGHTS", "offline": "DUNE_OFFLINE"}
ON_COMMAND_LINE_ONLY = ("output", "overwrite", "accept-licence", "quiet", "profile", "debug", "help", "json")
MAX_BYTES = 1_000_000
Options = Callable[[Sequence[str]], Mapping[str, Any] | None]  # words of a command to its options by key


@dataclass(frozen=True)
class ConfigFile:
    """A file with its keys, such as "depth.size", as TOML has them. of_project: it is a dune.toml."""

    path: Path
    of_project: bool
    values: dict[str, Any]


@dataclass(frozen=True)
class ConfiguredValue:
    """The value of a key and the file that it comes from."""

    key: str
    value: Any
    file: ConfigFile


def user_path() -> Path:
    """`$XDG_CONFIG_HOME/dune/config.toml`, else `~/.config/dune/config.toml`. It need not exist."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "dune" / "config.toml"


def project_path() -> Path | None:
    """The first dune.toml in the working directory or above it. One of another user (not root) does not count, with a
    note: it could change what a command does."""
    try:
        folder = Path.cwd()
    except OSError:  # it was deleted
        return None
    for path in (place / PROJECT_FILE for place in (folder, *folder.parents)):
        if path.is_file():
            if not hasattr(os, "getuid") or path.stat().st_uid in (os.getuid(), *TRUSTED_OWNERS):
                return path
            console.note_once(f"{path} belongs to another user and is not read", "config")
            return None
    return None


def read_file(path: Path, of_project: bool) -> ConfigFile:
    """The keys of a file. UserError for one that is no TOML, or larger than MAX_BYTES."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        values = _parse(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # TOML's and UTF-8's errors are ValueErrors; thousands of brackets
        raise UserError(f"{path} is no TOML file ({' '.join(str(error).split())}); correct or remove it") from None
    return ConfigFile(path, of_project, dict(_flat(values)))


def _parse(text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomlkit

        return tomlkit.parse(text).unwrap()
    return tomllib.loads(text)


def _flat(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, (*above, key))
        else:
            yield ".".join((*above, key)), value


def read_all() -> list[ConfigFile]:
    """The files that are there, the user's first."""
    found = []
    if user_path().is_file():
        found.append(read_file(user_path(), of_project=False))
    project = project_path()
    if project is not None:
        found.append(read_file(project, of_project=True))
    return found


def keys_of(params: Sequence[Any]) -> dict[str, Any]:
    """Options (Click's) of a command that a file may set, by key: the long name without its dashes."""
    found = {}
    for param in params:
        name = next((word[2:] for word in getattr(param, "opts", ()) if word.startswith("--")), None)
        if name is not None and name not in ON_COMMAND_LINE_ONLY:
            found[name] = param
    return found


def check_value(key: str, value: Any, options_of: Options, place: str, of_project: bool) -> Any:
    """The value of a key as its option takes it. UserError for an unknown key or a value that the option refuses."""
    *words, name = key.split(".")
    if not words and name in ENVIRONMENT:
        if of_project and name == "weights":
            raise UserError(f"{place}: weights is set in the user's file only, {user_path()}; or set DUNE_WEIGHTS")
        wanted, allowed = (bool, "true or false") if name == "offline" else (str, "a folder in quotes")
        if type(value) is not wanted:
            raise UserError(f"{place}: {name} is {_toml(value)}; allowed is {allowed}")
        return value
    options = options_of(words)
    if options is None:
        raise UserError(f"{place}: {'.'.join(words)} is no command of dune, so {key} cannot be set; remove it")
    if name in ON_COMMAND_LINE_ONLY:
        raise UserError(f"{place}: {key} cannot be set; --{name} is given on the command line alone")
    if name not in options:
        known = sorted([*options, *(() if words else ENVIRONMENT)])
        where = f" in [{'.'.join(words)}]" if words else " outside of tables"
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{place}: {key} is unknown; allowed{where}: {', '.join(known)}{hint}")
    return _converted(key, value, options[name], place)


def _converted(key: str, value: Any, option: Any, place: str) -> Any:
    import click

    flag = bool(option.is_flag) and option.type.name == "boolean"
    listed = isinstance(value, list)
    if flag is not isinstance(value, bool) or (listed and not (option.multiple or option.type.name == "list")):
        allowed = "true or false" if flag else option.metavar or option.type.name
        raise UserError(f"{place}: {key} is {_toml(value)}; allowed is {allowed}")
    given = [str(one) for one in value] if listed else value if flag else str(value)
    if option.multiple and not listed:
        given = [given]
    if option.type.name == "list" and listed:
        given = ",".join(given)
    try:
        option.type_cast_value(click.Context(click.Command("config"), resilient_parsing=True), given)
    except click.UsageError as error:
        raise UserError(f"{place}: {key} is {_toml(value)}: {' '.join(error.message.split())}") from None
    if option.name == "device":
        try:
            check_device(given)
        except UserError as error:
            raise UserError(f"{place}: {key} is {_toml(value)}: {error}") from None
    return given


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def configured(files: Sequence[ConfigFile], options_of: Options) -> dict[str, ConfiguredValue]:
    """All keys of the files, of which later ones win, checked. UserError as `check_value`."""
    found = {}
    for file in files:
        for key, value in file.values.items():
            checked = check_value(key, value, options_of, str(file.path), file.of_project)
            found[key] = ConfiguredValue(key, checked, file)
    return found


def for_command(
    words: Sequence[str], options: Mapping[str, Any], values: Mapping[str, ConfiguredValue]
) -> dict[str, ConfiguredValue]:
    """The values that set an option of a command, by key of the option; its own table wins within a file."""
    found: dict[str, ConfiguredValue] = {}
    for of_project in (False, True):
        for key in (*(name for name in SHARED if name in options), *(f"{'.'.join(words)}.{name}" for name in options)):
            if key in values and values[key].file.of_project is of_project:
                found[key.rpartition(".")[2]] = values[key]
    return found


def apply_environment(values: Mapping[str, ConfiguredValue]) -> None:
    """Sets DUNE_WEIGHTS and DUNE_OFFLINE of this process and its children, unless the user has."""
    for key, variable in ENVIRONMENT.items():
        if key in values and variable not in os.environ:
            value = values[key].value
            folder = values[key].file.path.parent
            os.environ[variable] = str(int(value)) if key == "offline" else str(folder / Path(value).expanduser())


def changed_text(path: Path, key: str, value: Any) -> str:
    """The text of a file, or of a new one, with a key set to a value, or without it where that is None; comments and
    other keys stay. UserError for what is no TOML, and for a key that is not there."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
    except (TOMLKitError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is no TOML file ({' '.join(str(error).split())}); correct or remove it") from None
    *tables, name = key.split(".")
    table: Any = document
    for part in tables:
        if value is not None and part not in table:
            table[part] = tomlkit.table(is_super_table=part != tables[-1])
        table = table.get(part, {})
    if value is not None:
        table[name] = value
    elif name in table:
        del table[name]
    else:
        raise UserError(f"{key} is not set in {path}; 'dune config show' lists what is")
    return tomlkit.dumps(document)
