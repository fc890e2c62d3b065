"""A work folder that the workers of an engine fill: what they compute is the same files that one process writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from dune_cli import console
from dune_cli.io.cache import WorkFolder
from dune_cli.sfm.engine import Engine, Setup

T = TypeVar("T")


class SharedWork(WorkFolder):
    """The work folder of an `engine`, on a file system or in an object store that all its workers see."""

    def __init__(self, place: str | Path, engine: Engine) -> None:
        super().__init__(place)
        self.engine = engine

    def fill(self, setup: Setup[T, object], items: Sequence[T], kinds: Sequence[str], what: str, unit: str) -> None:
        """Runs the jobs, each of which writes entries of `kinds`, and counts the new entries. `what` and `unit` are
        for progress. Raises what a job raises; what is done stays."""
        if not items:
            return
        before = {kind: len(self.sizes(kind)) for kind in kinds}
        try:
            for _ in console.progress(self.engine.map(setup, items), what, len(items), unit):
                pass
        finally:
            new = {kind: len(self.sizes(kind)) - before[kind] for kind in kinds}
            self.counts.update({kind: count for kind, count in new.items() if count})
