"""Runs a distillation again and again, killing it (SIGKILL) at random moments, until it has been killed often enough
and then ends by itself. `python tests/support/killed_runs.py OUTPUT KILLS WORDS…`; prints the number of kills and of
lost starts.

Forks from a process that has imported everything and computed nothing, so that a start costs milliseconds.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import dune_cli.commands.distill
import dune_cli.teachers.dinov2
import dune_cli.training.distill.distiller
import dune_cli.training.distill.finalize
from dune_cli.cli import main


def start(words: list[str]) -> int:
    """The pid of a child that runs `dune WORDS`."""
    pid = os.fork()
    if pid:
        return pid
    torch.set_num_threads(1)
    try:
        main(words, standalone_mode=False)
        os._exit(0)
    except SystemExit as stop:
        os._exit(int(stop.code or 0))


def finished(pid: int, seconds: float, enough: Callable[[], bool] = lambda: False) -> int | None:
    """The exit status if the child ends within `seconds`, and before `enough`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not enough():
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


def newest(output: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(p.name[5:]) for p in (output / "checkpoints").glob("step-*")), default=0)


def run(output: Path, kills: int, words: list[str]) -> tuple[int, int]:
    """Kills that hit, and runs that they hit before a new checkpoint was there."""
    chance = random.Random(3)
    hit = lost = 0
    whole = 1.0
    steps = int(words[len(words) - 1 - words[::-1].index("--steps") + 1])
    share = max(1, steps // (kills + 2))  # new checkpoints of a run, at most, so that some are left for every kill
    while True:
        before = newest(output)
        pid = start(words)
        started = time.monotonic()
        if hit >= kills:
            code = finished(pid, 300)
            if code != 0:
                raise SystemExit(f"the last run ended with {code}")
            return hit, lost
        code = finished(pid, chance.uniform(0, whole), lambda before=before: newest(output) - before >= share)
        if code == 0:
            raise SystemExit(f"it ended after {hit} kills only; use more steps")
        if code is not None:
            raise SystemExit(f"a run ended with {code}")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        hit += 1
        # about one new checkpoint a run: long enough to get on, short enough to be hit everywhere
        if newest(output) == before:
            lost += 1
            whole = min(20.0, whole * 1.3)
        else:
            whole = max(0.2, min(whole, 2 * (time.monotonic() - started) / (newest(output) - before)))


if __name__ == "__main__":
    assert dune_cli.commands.distill and dune_cli.teachers.dinov2
    assert dune_cli.training.distill and dune_cli.training.distill.finalize
    print(*run(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
