"""The output of a command: notes and progress on stderr, results on stdout.

Progress is a bar on a terminal, and elsewhere a line now and then (progress.py). Notes are printed everywhere, unless
--quiet is given, because logs need them too: which matcher ran, what was left out.

A file name, or a text out of a file, may hold what a terminal obeys. So control characters are shown as escapes on
stderr always, on stdout where that is a terminal; a pipe gets the bytes of the name, for the next program.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO, TypeVar

from dune_cli import progress as _progress
from dune_cli.progress import Counter, heartbeat, working

__all__ = [
    "aligned",
    "bar",
    "collected",
    "document",
    "heartbeat",
    "note",
    "note_once",
    "progress",
    "repeat",
    "rest",
    "result",
    "set_quiet",
    "shown",
    "states",
    "styled",
    "working",
]
T = TypeVar("T")
STYLES = {"good": "32", "bad": "31", "unsure": "33", "strong": "1"}
STATES = {"ok": "good", "broken": "bad", "missing": "bad", "not here": "unsure", "unknown": "unsure"}
Note = tuple[str, str | None]  # a message, and the kind of one that is not repeated
NOTES_OF_A_KIND = 6
# C0, DEL and C1 controls, line separators, marks that turn the direction of text, bytes that are no UTF-8
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_printed: dict[str, set[str]] = {}  # by note_once
_collected: list[Note] | None = None


def set_quiet(quiet: bool) -> None:
    """At the beginning of a command: silence notes and progress (errors still show)."""
    _printed.clear()
    _progress.quiet = quiet


def shown(text: object) -> str:
    """Text for a terminal, on one line: ESC as \\x1b, a newline as \\x0a, an undecodable byte as \\xff."""
    return _HIDDEN.sub(_escape, str(text))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def styled(text: str, style: str, stream: TextIO) -> str:
    """Text in a style of STYLES, where a stream is a terminal that wants colours (NO_COLOR, TERM=dumb: none)."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m"


def states(*lines: str) -> None:
    """Results whose first words may be a state of STATES, which a terminal shows in its colour."""
    for line in lines:
        word = next((word for word in STATES if line.strip().startswith(word)), None)
        text = shown(line) if sys.stdout.isatty() else line
        _print(text if word is None else text.replace(word, styled(word, STATES[word], sys.stdout), 1))


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Lines of a table without rules, whose columns line up. right: columns of numbers."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]


def note(message: str) -> None:
    """One line on stderr, unless --quiet."""
    if _collected is not None:
        _collected.append((message, None))
    elif not _progress.quiet:
        with _progress.past_bars():
            print(shown(message), file=sys.stderr, flush=True)


def note_once(message: str, kind: str) -> None:
    """A note that is not repeated within a command; after NOTES_OF_A_KIND different ones of a kind, no more of it."""
    if _collected is not None:
        _collected.append((message, kind))
        return
    printed = _printed.setdefault(kind, set())
    if message in printed or len(printed) > NOTES_OF_A_KIND:
        return
    printed.add(message)
    note(message if len(printed) <= NOTES_OF_A_KIND else f"further notes of this kind ({kind}) are left out")


@contextmanager
def collected() -> Iterator[list[Note]]:
    """Notes of the block go into the list: those of a worker process, which the command's own process repeats."""
    global _collected
    before, notes = _collected, []
    _collected = notes
    try:
        yield notes
    finally:
        _collected = before


def repeat(notes: Iterable[Note]) -> None:
    """Prints collected notes as `note` and `note_once` do."""
    for message, kind in notes:
        if kind is None:
            note(message)
        else:
            note_once(message, kind)


def rest() -> None:
    """From here on the command waits for its user: no more progress, however long that takes."""
    _progress.TRACKER.forget()


def result(*lines: object) -> None:
    """Results on stdout, such as paths, each on a line of its own; they do not run into a progress bar."""
    for line in lines:
        _print(shown(line) if sys.stdout.isatty() else str(line))


def document(text: str) -> None:
    """JSON or a table on stdout. Its line breaks stay; in JSON, what is escaped still means the same."""
    if sys.stdout.isatty():
        text = _HIDDEN.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)
    _print(text)


def _print(text: str) -> None:
    with _progress.past_bars():
        try:
            print(text, flush=True)
        except UnicodeEncodeError:  # a name that is no UTF-8: its own bytes
            try:
                raw = text.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError:
                raw = text.encode("utf-8", "backslashreplace")
            sys.stdout.flush()
            sys.stdout.buffer.write(raw + b"\n")
            sys.stdout.buffer.flush()


def progress(items: Iterable[T], description: str, total: int | None = None, unit: str = "item") -> Iterable[T]:
    """`items`, with progress on stderr: a bar on a terminal, a line now and then elsewhere; none with --quiet."""
    return _progress.counted(items, shown(description), total, unit)


def bar(total: int, description: str, unit: str) -> Counter:
    """The same to count by hand, by `update` and `close`."""
    return Counter(shown(description), total, unit)
