"""Where a result came from: the `provenance` object that every JSON carries (docs/file-formats.md)."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dune_cli import __version__
from dune_cli.progress import working

MOST_WORDS = 100  # of a command
configured: list[dict[str, Any]] = []  # options of this command that a configuration file set
runs: list[Run] = []  # of this command, for --profile


@dataclass(frozen=True)
class Source:
    """The weights (or the classical engine) behind a result: `sha256` is None where there is no weight file."""

    name: str
    sha256: str | None = None
    licence: str = "unknown"


@dataclass
class Run:
    """One run of a command: its stages' seconds and, in the end, its provenance."""

    seed: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    processor_seconds: dict[str, float] = field(default_factory=dict)  # of all threads and ended child processes

    def __post_init__(self) -> None:
        runs.append(self)

    @contextmanager
    def stage(self, name: str, shown: str | None = None) -> Iterator[None]:
        """Adds the seconds spent inside to `seconds[name]`; progress calls a long stage `shown`, else `name`."""
        start, processor_start = time.perf_counter(), processor_seconds()
        try:
            with working(shown or name):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            spent = processor_seconds() - processor_start
            self.processor_seconds[name] = self.processor_seconds.get(name, 0.0) + spent

    def provenance(self, sources: list[Source], inputs: list[tuple[Path, str]], **extra: Any) -> dict[str, Any]:
        """The JSON object: `sources` the models used, `inputs` (path, sha256) pairs, `extra` such as units or axes."""
        return {
            "dune": __version__,
            "models": [{"name": s.name, "sha256": s.sha256, "licence": s.licence} for s in sources],
            "command": ["dune", *_shortened(sys.argv[1:])],
            **({"config": configured} if configured else {}),
            "inputs": [{"path": str(path), "sha256": sha256} for path, sha256 in inputs],
            "seed": self.seed,
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
            **extra,
        }


def _shortened(words: list[str]) -> list[str]:
    """A command's words; of thousands of photos the first and last, as each line of a JSON Lines file has them."""
    if len(words) <= MOST_WORDS:
        return words
    half = MOST_WORDS // 2
    return [*words[:half], f"... {len(words) - 2 * half} more ...", *words[-half:]]


def processor_seconds() -> float:
    """Of this process so far, all threads, and its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a regular file, read in pieces of 1 MiB. OSError for one that cannot be read."""
    digest = hashlib.sha256()
    # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb", closefd=True) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
