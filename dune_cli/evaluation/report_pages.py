"""Tables of Markdown pages whose commands are known: their marker, what the command prints now, cells that differ.

A marker is an HTML comment right before a table, a field a line:

    <!-- dune eval report
    command: dune eval multiview DATA/multiview --matchers sift
    needs: DATA/multiview
    spread: 0.02
    spread rotation: 10 %
    not compared: seconds
    minutes: 2
    -->

`command` is a `dune` command or `python FILE`, which prints a Markdown table that holds the page's columns and rows; no
shell reads it. `needs`: paths without which it does not run. `spread` (of a column: `spread COLUMN`): how much a number
may differ, in the cell's unit or per cent of the larger number. `minutes`: what it takes. Instead of these a marker
may have `by hand`: why no command prints the table. DATA stands for the folder of the data.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dune_cli.errors import UserError
from dune_cli.io.safe_read import read_text

DATA = "DATA"
BEGIN = "<!-- dune eval report"
FIELDS = ("command", "needs", "spread", "not compared", "minutes", "by hand")
NUMBER = re.compile(r"(?<![A-Za-z\d.])[-−]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
ROUNDING = 1e-9
Row = tuple[str, ...]


@dataclass(frozen=True)
class Spread:
    """How far two numbers may be apart: `value`, or that share of the larger one."""

    value: float
    relative: bool = False

    @classmethod
    def parse(cls, text: str) -> Spread:
        """Of "0.02" or "10 %". ValueError for others."""
        relative = text.endswith("%")
        value = float(text.removesuffix("%"))
        if not 0 <= value < float("inf"):
            raise ValueError(text)
        return cls(value / 100 if relative else value, relative)

    def holds(self, one: float, other: float) -> bool:
        limit = self.value * max(abs(one), abs(other)) if self.relative else self.value
        return abs(one - other) <= limit + ROUNDING


@dataclass(frozen=True)
class Marker:
    """What stands in the comment before a table; see the module."""

    command: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    spread: Spread = Spread(0.0)
    spreads: dict[str, Spread] = field(default_factory=dict)
    not_compared: tuple[str, ...] = ()
    minutes: float = 0.0
    by_hand: str | None = None


@dataclass(frozen=True)
class PageTable:
    """A table of a page. line: of its head, from 1 on. marker: None where the page has none."""

    page: Path
    line: int
    head: Row
    rows: tuple[Row, ...]
    marker: Marker | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class CellDifference:
    """A cell that is not what the command prints now. now: None where it prints no such row."""

    row: str
    column: str
    page: str
    now: str | None

    def __str__(self) -> str:
        where = f"{self.row}, {self.column}" if self.column else self.row
        return f"{where}: {self.page} on the page, {'no such row' if self.now is None else self.now} now"


# --- pages ---


def read_page(page: Path) -> list[PageTable]:
    """The tables of a page in their order. UserError for a marker that cannot be understood or has no table."""
    lines = read_text(page, "a Markdown page").splitlines()
    tables, marker, index, fenced = [], None, 0, False
    while index < len(lines):
        line = lines[index]
        fenced ^= line.lstrip().startswith("```")
        if fenced:
            index += 1
        elif line.startswith(BEGIN):
            end = next((i for i in range(index, len(lines)) if lines[i].rstrip().endswith("-->")), None)
            if end is None or marker is not None:
                raise UserError(f"{page}:{index + 1}: this marker {'has no table' if marker else 'has no end (-->)'}")
            inner = [lines[index].removeprefix(BEGIN), *lines[index + 1 : end], lines[end].rstrip().removesuffix("-->")]
            marker, index = _marker(inner if end > index else inner[:1], f"{page}:{index + 1}"), end + 1
        elif line.startswith("|") and index + 1 < len(lines) and re.fullmatch(r"\|[\s|:-]+\|\s*", lines[index + 1]):
            head, start = _cells(line), index
            index += 2
            rows = []
            while index < len(lines) and lines[index].startswith("|"):
                rows.append(_cells(lines[index]))
                index += 1
            tables.append(PageTable(page, start + 1, head, tuple(rows), marker))
            marker = None
        else:
            if marker is not None and line.strip():
                raise UserError(f"{page}:{index + 1}: a table is expected below the marker, here is {line[:40]!r}")
            index += 1
    if marker is not None:
        raise UserError(f"{page}: the last marker has no table")
    return tables


def _cells(line: str) -> Row:
    return tuple(cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|"))


def _marker(lines: Sequence[str], place: str) -> Marker:
    found: dict[str, str] = {}
    for line in (line.strip() for line in lines):
        name, colon, text = (part.strip() for part in line.partition(":"))
        if not line:
            continue
        if not colon or not (name in FIELDS or name.startswith("spread ")) or name in found:
            raise UserError(f"{place}: {line!r} is no line of a marker; allowed once each: {', '.join(FIELDS)}")
        found[name] = text
    if ("command" in found) == ("by hand" in found):
        raise UserError(f"{place}: a marker needs either 'command' or 'by hand'")
    try:
        spreads = {name: Spread.parse(text) for name, text in found.items() if name.startswith("spread")}
        minutes = float(found.get("minutes", 0))
    except ValueError as error:
        raise UserError(f"{place}: {error}; a spread is such as 0.02 or 10 %, minutes are a number") from None
    command = tuple(shlex.split(found.get("command", "")))
    if command and command[0] not in ("dune", "python"):
        raise UserError(f"{place}: {command[0]!r} is no command of a marker; allowed: dune …, python FILE …")
    return Marker(
        command,
        tuple(found.get("needs", "").split()),
        spreads.pop("spread", Spread(0.0)),
        {name.removeprefix("spread "): value for name, value in spreads.items()},
        tuple(name.strip() for name in found.get("not compared", "").split(",") if name.strip()),
        minutes,
        found.get("by hand"),
    )


# --- what the command prints ---


def why_not(marker: Marker | None, data: Path | None, most_minutes: float | None) -> str | None:
    """Why a table is not printed again; None if it can be."""
    if marker is None:
        return "no marker"
    if marker.by_hand is not None:
        return f"by hand: {marker.by_hand}"
    if most_minutes is not None and marker.minutes > most_minutes:
        return f"takes {marker.minutes:g} minutes"
    for path in marker.needs:
        if data is None and path.split("/")[0] == DATA:
            return f"needs {path}; name the folder by --data-root"
        if not Path(_with_data(path, data)).exists():
            return f"needs {path}, which is not here"
    return None


def _with_data(word: str, data: Path | None) -> str:
    return re.sub(rf"^{DATA}(?=/|$)", lambda _: str(data), word)


def run(table: PageTable, data: Path | None, outputs: dict[Row, str]) -> tuple[Row, tuple[Row, ...]]:
    """Head and rows of the table that the command of a table prints now, in the columns of the page. `outputs` of
    commands are kept, for other tables of the same one. UserError where it fails or prints no such table."""
    assert table.marker is not None
    words = tuple(_with_data(word, data) for word in table.marker.command)
    if words not in outputs:
        outputs[words] = _output(words, table.place)
    printed = printed_table(outputs[words], table.head)
    if printed is None:
        raise UserError(f"{table.place}: {shlex.join(words)} prints no table with the columns {', '.join(table.head)}")
    return printed


def _output(words: Row, place: str) -> str:
    """What a command prints on standard output; it ends with this process's block."""
    start = [sys.executable, "-m", "dune_cli.cli"] if words[0] == "dune" else [sys.executable]
    process = subprocess.Popen(
        [*start, *words[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        text, _ = process.communicate()
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise UserError(f"{place}: {shlex.join(words)} ended with exit code {process.returncode}")
    return text


def printed_table(text: str, head: Row) -> tuple[Row, tuple[Row, ...]] | None:
    """The columns `head` of the first Markdown table in `text` that has them."""
    found: list[list[Row]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("|"):
            if not inside:
                found.append([])
            found[-1].append(_cells(line))
        inside = line.startswith("|")
    for first, *rest in found:
        if set(head) <= set(first):
            order = [first.index(name) for name in head]
            rows = [row for row in rest if len(row) == len(first) and not all(re.fullmatch(":?-+:?", c) for c in row)]
            return head, tuple(tuple(row[i] for i in order) for row in rows)
    return None


# --- comparison ---


def compare(table: PageTable, rows: Sequence[Row]) -> list[CellDifference]:
    """Cells of the page that differ from `rows`, the rows printed now in the page's columns, by more than the spread.

    Rows belong together by the text of their label columns, which are those without a number at the beginning of a
    cell; an empty label is that of the row above. Of the other cells the numbers are compared, in their order.
    """
    assert table.marker is not None
    labels = [i for i in range(len(table.head)) if not any(_starts_with_number(row[i]) for row in table.rows)]
    now: dict[Row, list[Row]] = {}
    for key, row in zip(_keys(rows, labels), rows):
        now.setdefault(key, []).append(row)
    different = []
    for key, row in zip(_keys(table.rows, labels), table.rows):
        name = " ".join(part for part in key if part) or row[0]
        if not now.get(key):
            different.append(CellDifference(name, "", " | ".join(row), None))
            continue
        other = now[key].pop(0)
        for i, column in enumerate(table.head):
            if i in labels or column in table.marker.not_compared:
                continue
            if not _same(row[i], other[i], table.marker.spreads.get(column, table.marker.spread)):
                different.append(CellDifference(name, column, row[i], other[i]))
    return different


def count_cells(table: PageTable) -> int:
    """Cells that `compare` compares."""
    assert table.marker is not None
    columns = [
        name
        for i, name in enumerate(table.head)
        if name not in table.marker.not_compared and any(_starts_with_number(row[i]) for row in table.rows)
    ]
    return len(columns) * len(table.rows)


def markdown(head: Row, rows: Sequence[Row]) -> str:
    """A table as the pages have it."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)).replace(
        "| --- " * len(head), "|---" * len(head), 1
    )


def _keys(rows: Sequence[Row], labels: Sequence[int]) -> list[Row]:
    keys: list[Row] = []
    for row in rows:
        above = keys[-1] if keys else ("",) * len(labels)
        keys.append(tuple(_plain(row[i]) or above[k] for k, i in enumerate(labels)))
    return keys


def _plain(cell: str) -> str:
    return cell.replace("`", "").replace("*", "")


def _starts_with_number(cell: str) -> bool:
    return re.match(r"[-−]?\.?\d", _plain(cell)) is not None


def _same(page: str, now: str, spread: Spread) -> bool:
    numbers = [[_number(text) for text in NUMBER.findall(_plain(cell))] for cell in (page, now)]
    if not numbers[0] and not numbers[1]:
        return _plain(page) == _plain(now)
    return len(numbers[0]) == len(numbers[1]) and all(spread.holds(one, other) for one, other in zip(*numbers))


def _number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))
