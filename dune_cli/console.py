"""What a command says while it works, on stderr. Results go to stdout, through click.echo.

Progress bars are for terminals only. Notes always show (unless --quiet), for they tell what a script's log needs too:
which matcher ran, that nobody was found, what was left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence notes and progress bars (errors still show)."""
    global _quiet
    _quiet = quiet


def note(message: str) -> None:
    """One line on stderr, unless --quiet."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


def progress(items: Iterable[T], description: str, total: int | None = None, unit: str = "it") -> Iterable[T]:
    """`items` behind a tqdm bar on stderr; a plain iteration where stderr is no terminal or with --quiet."""
    if _quiet or not sys.stderr.isatty():
        return items
    from tqdm import tqdm

    return tqdm(items, desc=description, total=total, unit=unit, file=sys.stderr, leave=False)


def bar(total: int, description: str, unit: str) -> Any | None:
    """A tqdm bar on stderr to update by hand; None where stderr is no terminal or with --quiet."""
    if _quiet or not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    return tqdm(total=total, desc=description, unit=unit, file=sys.stderr, leave=False)
