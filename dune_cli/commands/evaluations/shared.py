"""What the benchmarks of `dune eval` share: their options, the matchers that are columns, rounding, tables, the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dune_cli import console
from dune_cli.commands import checks, options

if TYPE_CHECKING:
    from dune_cli.matchers.matcher import Matcher


def columns(function: options.F) -> options.F:
    """`matchers`, `model`, `encoder`: what `load_columns` takes."""
    matchers = click.option(
        "--matcher",
        "matchers",
        metavar="NAME,…",
        callback=options.names,
        help="Matchers, each a column; auto: the best one present.  [default: auto; mast3r with --model]",
    )
    return matchers(model(encoder(function)))


model = click.option("--model", metavar="FILE|NAME", help="Model of the matcher dune or mast3r.")
encoder = click.option("--encoder", metavar="FILE|NAME", help="Its encoder, if the model's file has none.")


def sets(text: str = "Only these sets.") -> Any:
    """`sets`."""
    return click.option("--set", "sets", metavar="NAME,…", callback=options.names, help=text)


def load_columns(
    names: Sequence[str], model: str | None, encoder: str | None, device: str, dtype: str
) -> dict[str, Matcher]:
    """The columns in the order asked for, all loaded before the first pair is matched."""
    from dune_cli.matchers import registry

    names = list(names) or (["mast3r"] if model else ["auto"])
    if "auto" in names:
        best, note = registry.choose_auto()
        console.note(note)
        names = list(dict.fromkeys(best if name == "auto" else name for name in names))
    takers = checks.model_takers(names, model, encoder)
    return {
        name: registry.load_matcher(name, device, dtype, *((model, encoder) if name in takers else ()))
        for name in names
    }


def rounded(values: dict[str, Any], digits: int = 5) -> dict[str, Any]:
    """The same with its floats rounded."""
    return {key: round(value, digits) if isinstance(value, float) else value for key, value in values.items()}


def text_table(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """Lines whose columns line up."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def text_blocks(blocks: dict[str, Sequence[Sequence[str]]]) -> str:
    """Tables below their titles."""
    return "\n\n".join("\n".join([title, *text_table(rows, "  ")]) for title, rows in blocks.items())


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up as plain text, too."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths)) + " |" for line in lines)


def finish(result: dict[str, Any], target: Path | None, as_json: bool, table: str) -> None:
    """Writes the JSON to `target`, if there is one, and prints it or the table."""
    from dune_cli.io import json_files

    if target is not None:
        json_files.write_json(target, result)
    console.document(json_files.dumps(result) if as_json else table)
