"""`dune config`: defaults of options in files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from dune_cli import console
from dune_cli.commands import configured, options
from dune_cli.commands.options import JsonOptions, option
from dune_cli.errors import UserError


@click.group("config")
def command() -> None:
    """Show and set the defaults of options.

    Defaults are kept in a TOML file of the user, and in a file dune.toml of a project: the first one in the working
    directory or above it. Keys at the top are device, dtype, weights (a folder, as DUNE_WEIGHTS) and offline (as
    DUNE_OFFLINE). A table holds options of one command: [depth], [eval.pairs]. The command line wins over the
    environment, that over the project's file, and that over the user's. What writes files or accepts licences cannot
    be set. Results name the defaults that were used.

    \b
    Example: dune config set device cuda
             dune config set depth.size 518 --project
    """


KEY = options.argument("KEY", "Such as device, depth.size or eval.pairs.matchers.")
PROJECT = option("--project", "Use the project's dune.toml, which is made here if there is none.", heading="Output")


@options.verb("path", command)
def path() -> None:
    """Print the paths of the files.

    The user's file comes first. It need not exist. The project's file follows where there is one.

    \b
    Example: dune config path
    """
    from dune_cli import config

    project = config.project_path()
    console.result(config.user_path(), *([] if project is None else [project]))


@options.verb("show", command)
def show(*, output: JsonOptions) -> None:
    """Print the defaults that are set, and where.

    Later lines win over earlier ones of the same key. Variables of the environment come last.

    \b
    Example: dune config show --json
    """
    from dune_cli import config

    files = config.read_all()
    config.configured(files, _options())
    rows = [(key, value, str(file.path)) for file in files for key, value in file.values.items()]
    variables = {**config.ENVIRONMENT, **{name: f"DUNE_{name.upper()}" for name in config.SHARED}}
    rows += [(key, os.environ[name], f"${name}") for key, name in variables.items() if name in os.environ]
    found = [{"key": key, "value": value, "from": place} for key, value, place in rows]
    output.print_json([{"schema": "dune.config/1", "values": found}])
    if not rows:
        console.note(f"nothing is set; 'dune config set KEY VALUE' writes {config.user_path()}")
    output.print_lines(*console.aligned([(key, _text(value), f"({place})") for key, value, place in rows]))


VALUE = options.argument("VALUE", "As on the command line; of a flag true or false.")


@options.verb("set", command)
def set_value(*, key: str = KEY, value: str = VALUE, project: bool = PROJECT) -> None:
    """Set the default of an option.

    Comments and other keys of the file stay.

    \b
    Example: dune config set offline true
             dune config set eval.pairs.matchers sift,aliked-lightglue
    """
    from dune_cli import config

    file = _file(project)
    given = {"true": True, "false": False}.get(value.lower(), value)
    config.check_value(key, given, _options(), str(file), project)
    _write(file, config.changed_text(file, key, _native(given)))


@options.verb("unset", command)
def unset(*, key: str = KEY, project: bool = PROJECT) -> None:
    """Remove the default of an option.

    \b
    Example: dune config unset depth.size
    """
    from dune_cli import config

    file, other = _file(project), _file(not project)
    places = [one.path for one in config.read_all() if key in one.values]
    if file not in places and other in places:
        how = "leave --project out" if project else "add --project"
        raise UserError(f"{key} is not set in {file}, but in {other}; {how}")
    _write(file, config.changed_text(file, key, None))


def _options() -> Any:
    return configured.options_of(click.get_current_context().find_root().command)


def _file(of_project: bool) -> Path:
    from dune_cli import config

    return (config.project_path() or Path(config.PROJECT_FILE).absolute()) if of_project else config.user_path()


def _native(value: Any) -> Any:
    """A number as TOML has it."""
    for kind in (int, float):
        try:
            return value if isinstance(value, bool) else kind(value)
        except ValueError:
            continue
    return value


def _write(file: Path, text: str) -> None:
    from dune_cli.io.outputs import atomic_path

    try:
        with atomic_path(file) as path:
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error
    console.result(file)


def _text(value: Any) -> str:
    """As on the command line."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
