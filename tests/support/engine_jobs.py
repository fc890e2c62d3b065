"""Jobs for engines, in a module that worker processes can import."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dune_cli import console
from dune_cli.errors import UserError


@dataclass(frozen=True)
class Squares:
    """Squares numbers, and notes each. The item `kill` kills its worker, `times` times; `bad` raises."""

    folder: Path
    kill: int = -1
    times: int = 1
    bad: int = -1

    def __call__(self) -> Callable[[int], Sequence[int]]:
        return self.square

    def square(self, number: int) -> Sequence[int]:
        kills = len(list(self.folder.glob("kill*")))
        if number == self.kill and kills < self.times:
            (self.folder / f"kill{kills}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.bad:
            raise UserError(f"{number} is bad")
        console.note(f"squared {number}")
        (self.folder / f"pid{os.getpid()}").touch()
        return (number * number, number)
