"""Progress: lines where stderr is no terminal, bars where it is one, nothing with --quiet."""

from __future__ import annotations

import fcntl
import io
import itertools
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from dune_cli import console, progress
from dune_cli.progress import ProgressTracker
from dune_cli.provenance import Run


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def _default_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DUNE_PROGRESS_S", raising=False)


@pytest.fixture
def lines(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the tracker of this process writes, by the clock."""
    written: list[str] = []
    monkeypatch.setattr(progress, "TRACKER", ProgressTracker(written.append, clock))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    return written


def test_a_counted_step_tells_done_of_all_and_time_to_go(clock: Clock, lines: list[str]) -> None:
    times = []
    for _ in console.progress(range(10), "matching", unit="pair"):
        clock.now += 15
        times.append(clock.now)
    assert lines == [
        "matching: 2 of 10 pairs, 30 s, about 2 min 0 s to go",
        "matching: 4 of 10 pairs, 1 min 0 s, about 1 min 30 s to go",
        "matching: 6 of 10 pairs, 1 min 30 s, about 1 min 0 s to go",
        "matching: 8 of 10 pairs, 2 min 0 s, about 30 s to go",
        "matching: 10 of 10 pairs, 2 min 30 s",
    ]


def test_no_half_minute_is_silent_however_long_an_item_takes(clock: Clock, lines: list[str]) -> None:
    """The thread's beats, once a second."""
    spoken = [clock.now]
    for _ in console.progress(iter(range(2)), "looking", unit="query"):
        for _ in range(100):
            clock.now += 1
            before = len(lines)
            progress.TRACKER.beat()
            if len(lines) > before:
                spoken.append(clock.now)
    assert max(b - a for a, b in itertools.pairwise(spoken)) <= 30
    assert lines[-1].startswith("looking: 1 query, 3 min ")


def test_a_step_without_items_is_named_with_its_seconds(clock: Clock, lines: list[str]) -> None:
    run = Run()
    with console.working("reconstruct"), run.stage("map", "mapping"):
        clock.now += 35
        progress.TRACKER.beat()
    assert lines == ["reconstruct: 35 s; mapping: 35 s"]
    assert set(run.seconds) == {"map"}


def test_steps_inside_a_counted_one(clock: Clock, lines: list[str]) -> None:
    for _ in console.progress(["a", "b"], "places", unit="place"):
        with console.working("mapping"):
            clock.now += 28
            progress.TRACKER.beat()
    assert lines == [
        "places: 0 of 2 places, 28 s; mapping: 28 s",
        "places: 1 of 2 places, 56 s, about 56 s to go; mapping: 28 s",
    ]


def test_a_loop_that_is_left_is_over(clock: Clock, lines: list[str]) -> None:
    for _ in console.progress(range(5), "photos", unit="photo"):
        break
    clock.now += 100
    progress.TRACKER.beat()
    assert lines == []


def test_words_behind_a_count_are_asked_for_when_due(clock: Clock, lines: list[str]) -> None:
    asked = []
    bar = console.bar(4, "distill", "step")
    for step in range(4):
        clock.now += 14
        bar.update(1, lambda step=step: asked.append(step) or f"loss {step}")
    bar.close()
    assert asked == [1, 3]
    assert lines[0] == "distill: 2 of 4 steps, 28 s, about 28 s to go, loss 1"


@pytest.mark.parametrize("silence", ["quiet", "rank"])
def test_quiet_and_other_ranks_say_nothing(silence: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(progress, "TRACKER", ProgressTracker(progress._write, clock))
    if silence == "quiet":
        monkeypatch.setattr(progress, "quiet", True)
    else:
        monkeypatch.setenv("RANK", "1")
    for _ in console.progress(range(3), "photos", unit="photo"):
        clock.now += 60
        progress.TRACKER.beat()
    with console.working("mapping"):
        clock.now += 60
        progress.TRACKER.beat()
    assert err.getvalue() == ""


HANGS = """
import ctypes, sys, time
from dune_cli import console, progress
progress.LINE_EVERY_S, progress.BEAT_S, progress.STATUS_AFTER_S = 0.3, 0.05, 0.1
with console.heartbeat("reconstruct"):
    with console.working("mapping"):
        time.sleep(1.5)
    for photo in console.progress(["a", "b", "c"], "photos", unit="photo"):
        time.sleep(0.2)
        console.note(f"note {photo}")
        console.result(f"result {photo}")
"""


def test_a_thread_writes_lines_while_a_library_works() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, check=True, timeout=60)
    said = done.stderr.splitlines()
    assert sum("; mapping: " in line for line in said) >= 2
    assert any("; photos: " in line for line in said)
    assert done.stdout == "result a\nresult b\nresult c\n"
    assert "\r" not in done.stderr


def test_a_terminal_gets_bars_and_whole_lines() -> None:
    """Notes and results never share a line with a bar."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", HANGS], stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not piece:
            break
        shown += piece
    assert process.wait(30) == 0
    text = shown.decode()
    assert re.search(r"mapping: \d s", text) and re.search(r"photos: .*[123]/3", text)
    for word in ("note a", "result a", "note c", "result c"):
        whole = next(line for line in text.split("\n") if word in line)
        assert whole.rstrip("\r").split("\r")[-1].removeprefix("\x1b[A").strip() == word, repr(whole)


def test_every_verb_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example_photos: Path) -> None:
    """`dune` itself is the outermost step, so that loading a model is not silent either."""
    from click.testing import CliRunner

    from dune_cli.cli import main

    begun = []
    monkeypatch.setattr(progress.TRACKER, "begin", lambda name, unit="", total=None: begun.append(name))
    monkeypatch.setattr(progress.TRACKER, "end", lambda task: None)
    CliRunner().invoke(main, ["weights", "path"])
    assert begun[0] == "weights"
