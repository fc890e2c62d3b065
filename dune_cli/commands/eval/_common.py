"""What the benchmarks share: options, rounding, tables, and the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.options import OutputOptions

if TYPE_CHECKING:
    from dune_cli.evaluation.posed_sets import PosedSet
    from dune_cli.matchers.matcher import Matcher


PHOTO_SETS = "Folder of photo sets, whose cameras.json files hold intrinsics and true poses."


@options.group("Input")
class SetOptions:
    sets: tuple[str, ...] = options.option(
        "--set NAME,...", "Sets to evaluate, which are folders of ROOT.", options.NameList(), default_text="all"
    )


@options.group("Output")
class BenchmarkOutput(OutputOptions):
    output: str | None = options.output_to("a .json file with all scores.")

    def finish(self, result: dict[str, Any], target: Path | None, table: str) -> None:
        """Writes the JSON to `target`, if there is one, and prints it or the table."""
        from dune_cli.io.json_files import write_json

        if target is not None:
            write_json(target, result)
        self.print_json([result])
        if not self.as_json:
            console.document(table)


def rounded(values: Any, digits: int = 5) -> dict[str, Any]:
    """The fields of a dataclass instance, its floats rounded."""
    items = asdict(values).items()
    return {key: round(value, digits) if isinstance(value, float) else value for key, value in items}


def matcher_columns(columns: Mapping[str, Matcher]) -> list[dict[str, Any]]:
    """What the JSON says of each matcher."""
    return [
        {"matcher": name, "working_size_px": matcher.working_size_px, "weights": matcher.source.name}
        for name, matcher in columns.items()
    ]


def described_sets(places: Sequence[PosedSet]) -> list[dict[str, Any]]:
    """What the JSON says of each set."""
    return [
        {"set": place.name, "photos": len(place.map.images), "scale": place.map.scale, "extent": round(place.extent, 4)}
        for place in places
    ]


def set_files(places: Sequence[PosedSet]) -> list[tuple[Path, str]]:
    """The files of the sets with their hashes, for the provenance."""
    from dune_cli.provenance import sha256_of

    return [(file, sha256_of(file)) for place in places for file in place.map.files]


def markdown_blocks(blocks: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """Markdown tables, whose first rows are their heads, below their titles."""
    return "\n\n".join(f"{title}\n\n{markdown(head, rows)}" for title, (head, *rows) in blocks.items())


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up as plain text, too."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths)) + " |" for line in lines)
