"""`dune eval report`: the tables of benchmark pages printed again by their commands."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.eval._common import BenchmarkOutput
from dune_cli.commands.options import option
from dune_cli.errors import JobFailed, UserError
from dune_cli.provenance import Run, sha256_of

if TYPE_CHECKING:
    from dune_cli.evaluation.report_pages import PageTable


@options.group("Input")
class ReportOptions:
    pages: tuple[str, ...] = option(
        "--pages NAME,...", "Pages to print, by file name without .md.", options.NameList(), default_text="all"
    )
    data_root: str | None = option(
        "--data-root DIR",
        "Data folder, which DATA in the commands stands for.",
        default_text="none, and tables that need it are left out",
    )
    minutes: float | None = option(
        "--minutes MINUTES",
        "Longest table to run, in minutes as its marker says.",
        options.POSITIVE_NUMBER,
        default_text="no limit",
    )
    check: bool = option("--check", "Compare with the pages, and end with exit code 1 where a cell differs.")


@options.verb("report")
def command(
    *,
    paths: tuple[str, ...] = options.argument(
        "PAGE...", "Markdown pages, or folders of them.", nargs=-1, required=True
    ),
    chosen: ReportOptions,
    output: BenchmarkOutput = options.adapt(output=options.output_to("a .json file with all tables.")),
) -> None:
    """Print the tables of benchmark pages again.

    A comment before a table names the command that prints it, the data that it needs, its minutes, and by how much a
    number may differ. These commands are run in this folder, one after the other, as they stand on the page. Without
    --check the tables are printed with their new numbers. With it, cells that differ by more than their spread are
    named. Tables whose data are not here, or that no command prints, are listed with the reason.

    \b
    Example: dune eval report --check docs/benchmarks --pages two-photos
             dune eval report --check docs/benchmarks --data-root data/ --minutes 2
    """
    from dune_cli.evaluation import report_pages

    target = output.file(".json")
    data = None if chosen.data_root is None else Path(chosen.data_root).expanduser()
    pages = _pages(paths, chosen.pages)
    tables = [table for page in pages for table in report_pages.read_page(page)]
    if not tables:
        raise UserError(f"{pages[0]} holds no table with the marker of dune eval report; name a page of benchmarks")
    run, results, lines = Run(), [], []
    outputs: dict[tuple[str, ...], str] = {}
    with run.stage("tables"):
        for table in console.progress(tables, "tables", len(tables), "table"):
            why = report_pages.why_not(table.marker, data, chosen.minutes)
            results.append(_skipped(table, why) if why else _printed(table, data, outputs))
            lines += _lines(results[-1], chosen.check)
    wrong = [one for one in results if one["differences"]]
    result = {
        "schema": "dune.eval-report/1",
        "checked": chosen.check,
        "tables": results,
        "provenance": run.provenance([], [(page, sha256_of(page)) for page in pages]),
    }
    output.finish(result, target, "\n".join(lines))
    if chosen.check and wrong:
        count = sum(len(one["differences"]) for one in wrong)
        places = ", ".join(f"{one['page']}:{one['line']}" for one in wrong)
        raise JobFailed(f"{count} {'cell differs' if count == 1 else 'cells differ'} by more than the spread: {places}")


def _pages(paths: tuple[str, ...], chosen: tuple[str, ...]) -> list[Path]:
    pages: list[Path] = []
    for path in (Path(text).expanduser() for text in paths):
        if not path.exists():
            raise UserError(f"{path} does not exist; name Markdown pages or folders of them")
        pages += sorted(path.glob("*.md")) if path.is_dir() else [path]
    names = {page.stem for page in pages}
    unknown = [name for name in chosen if name not in names]
    if unknown or not pages:
        what = f"--pages {unknown[0]}" if unknown else None
        known = ", ".join(sorted(names))
        raise UserError(f"{what} is none of the pages: {known}" if what else f"{paths[0]} holds no .md files")
    return [page for page in pages if not chosen or page.stem in chosen]


def _skipped(table: PageTable, why: str) -> dict[str, Any]:
    return {"page": str(table.page), "line": table.line, "skipped": why, "differences": []}


def _printed(table: PageTable, data: Path | None, outputs: dict[tuple[str, ...], str]) -> dict[str, Any]:
    from dune_cli.evaluation import report_pages

    assert table.marker is not None
    console.note(f"{table.place}: {shlex.join(table.marker.command)}")
    head, rows = report_pages.run(table, data, outputs)
    different = report_pages.compare(table, rows)
    return {
        "page": str(table.page),
        "line": table.line,
        "skipped": None,
        "command": list(table.marker.command),
        "head": list(head),
        "rows": [list(row) for row in rows],
        "cells": report_pages.count_cells(table),
        "differences": [
            {"row": one.row, "column": one.column, "page": one.page, "now": one.now, "text": str(one)}
            for one in different
        ],
    }


def _lines(result: dict[str, Any], check: bool) -> list[str]:
    from dune_cli.evaluation import report_pages

    place = f"{result['page']}:{result['line']}"
    if result["skipped"]:
        return [f"{place}: left out ({result['skipped']})"]
    if not check:
        rows = [tuple(row) for row in result["rows"]]
        return [
            "",
            f"{place}: {shlex.join(result['command'])}",
            "",
            report_pages.markdown(tuple(result["head"]), rows),
            "",
        ]
    if not result["differences"]:
        return [f"{place}: the same ({result['cells']} cells)"]
    return [f"{place}: differs", *(f"  {one['text']}" for one in result["differences"])]
