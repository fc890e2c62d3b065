"""What a command says: notes and progress on stderr, results on stdout.

Progress is a bar on a terminal, and elsewhere a line now and then (progress.py). Notes always show (unless --quiet),
for they tell what a script's log needs too: which matcher ran, that nobody was found, what was left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from dune_cli import progress as _progress
from dune_cli.progress import Counter, heartbeat, working

__all__ = ["bar", "heartbeat", "note", "note_once", "progress", "result", "set_quiet", "working"]
T = TypeVar("T")
NOTES_OF_A_KIND = 6
_told: dict[str, set[str]] = {}  # by note_once


def set_quiet(quiet: bool) -> None:
    """At the beginning of a command: silence notes and progress (errors still show)."""
    _told.clear()
    _progress.quiet = quiet


def note(message: str) -> None:
    """One line on stderr, unless --quiet."""
    if not _progress.quiet:
        with _progress.past_bars():
            print(message, file=sys.stderr, flush=True)


def note_once(message: str, kind: str) -> None:
    """A note that is not repeated within a command; after NOTES_OF_A_KIND different ones of a kind, no more of it."""
    told = _told.setdefault(kind, set())
    if message in told or len(told) > NOTES_OF_A_KIND:
        return
    told.add(message)
    note(message if len(told) <= NOTES_OF_A_KIND else f"further notes of this kind ({kind}) are left out")


def result(text: object) -> None:
    """Lines on stdout while progress may be shown: they do not run into a bar."""
    import click

    with _progress.past_bars():
        click.echo(text)


def progress(items: Iterable[T], description: str, total: int | None = None, unit: str = "item") -> Iterable[T]:
    """`items`, with progress on stderr: a bar on a terminal, a line now and then elsewhere; none with --quiet."""
    return _progress.counted(items, description, total, unit)


def bar(total: int, description: str, unit: str) -> Counter:
    """The same to count by hand, by `update` and `close`."""
    return Counter(description, total, unit)
