"""Work in progress on stderr: bars on a terminal; elsewhere a line at least every LINE_EVERY_S seconds.

Such a line names the command, the steps that can be counted (done, of all, time so far and to go), and the step that is
at work without countable items, each with its time. A thread writes it, so that a long call into a library has one.
$DUNE_PROGRESS_S sets other seconds between two lines.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """What a step has done so far. total: None where it is not known; unit: what is counted, "" where nothing is."""

    step: str
    done: int = 0
    total: int | None = None
    unit: str = ""


Listener = Callable[[Progress], object]
LINE_EVERY_S = 27.0  # no log is silent for half a minute
BEAT_S = 1.0
STATUS_AFTER_S = 2.0  # on a terminal, for a step without countable items
quiet = False  # set by console.set_quiet
_listeners: list[Listener] = []  # the last one is told; see `listening`


@dataclass(eq=False)
class Task:
    """A step at work. unit: what is counted, "" where nothing is; total: None where it is not known."""

    name: str
    started: float
    unit: str = ""
    total: int | None = None
    done: int = 0
    shown: str = ""

    def describe(self, now: float) -> str:
        """Such as "matching: 120 of 179 pairs, 2 min 10 s, about 1 min 4 s to go"."""
        seconds = now - self.started
        if not self.unit:
            return f"{self.name}: {duration(seconds)}"
        if self.total is None:
            text = f"{self.name}: {amount(self.done, self.unit)}, {duration(seconds)}"
        else:
            text = f"{self.name}: {self.done} of {amount(self.total, self.unit)}, {duration(seconds)}"
            if 0 < self.done < self.total:
                text += f", about {duration(seconds / self.done * (self.total - self.done))} to go"
        return f"{text}, {self.shown}" if self.shown else text


class ProgressTracker:
    """The tasks at work, outermost first, and when a line about them is due. Any thread may call it."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self.clock = write, clock
        self._tasks: list[Task] = []
        self._last_line = clock()
        self._lock = threading.Lock()

    def begin(self, name: str, unit: str = "", total: int | None = None) -> Task:
        """A new innermost task."""
        task = Task(name, self.clock(), unit, total)
        with self._lock:
            if not self._tasks:
                self._last_line = task.started
            self._tasks.append(task)
        return task

    def advance(self, task: Task, count: int = 1, shown: Callable[[], str] | None = None) -> None:
        """`count` more items of `task` are done; `shown` gives words to put behind, and is asked for when due."""
        task.done += count
        if self.clock() - self._last_line >= _line_every_s():
            if shown is not None:
                task.shown = shown()
            self.beat()

    def end(self, task: Task) -> None:
        """`task` is over; one that was is over."""
        with self._lock, contextlib.suppress(ValueError):
            self._tasks.remove(task)

    def beat(self) -> None:
        """Writes a line if one is due."""
        with self._lock:
            now = self.clock()
            if not self._tasks or now - self._last_line < _line_every_s():
                return
            self._last_line = now
            text = self._line(now)
        self._write(text)

    def innermost(self) -> Task | None:
        """The step that was begun last."""
        with self._lock:
            return self._tasks[-1] if self._tasks else None

    def forget(self) -> None:
        """All tasks are over."""
        with self._lock:
            self._tasks.clear()

    def _line(self, now: float) -> str:
        first, last = self._tasks[0], self._tasks[-1]
        listed = [task for task in self._tasks if task.unit or task is last]
        if first.name not in {task.name for task in listed}:
            listed.insert(0, first)
        return "; ".join(task.describe(now) for task in listed)


def duration(seconds: float) -> str:
    """Such as 35 s, 2 min 10 s, 3 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plural(unit: str) -> str:
    """Of the words that items are counted in."""
    if unit.endswith("B"):
        return unit  # MiB
    return unit[:-1] + "ies" if unit.endswith("y") else unit + "s"


def amount(number: int, unit: str) -> str:
    """Such as "1 photo" and "2 photos"."""
    return f"{number} {unit if number == 1 else plural(unit)}"


class Counter:
    """Items of a task counted by hand: a tqdm bar on a terminal, else a task of the tracker; nothing when silent."""

    def __init__(self, name: str, total: int | None, unit: str) -> None:
        self._bar = self._task = None
        self._told = Progress(name, 0, total, unit)
        _tell(self._told)
        if _silent():
            return
        if sys.stderr.isatty():
            self._bar = _tqdm()(total=total, desc=name, unit=unit, file=sys.stderr, leave=False)
        else:
            self._task = TRACKER.begin(name, unit, total)

    def update(self, count: int = 1, shown: Callable[[], str] | None = None) -> None:
        """`count` more; `shown` gives words to put behind."""
        if _listeners:
            self._told = replace(self._told, done=self._told.done + count)
            _tell(self._told)
        if self._bar is not None:
            if shown is not None:
                self._bar.set_postfix_str(shown(), refresh=False)
            self._bar.update(count)
        elif self._task is not None:
            TRACKER.advance(self._task, count, shown)

    @property
    def rate(self) -> float:
        """Items a second so far."""
        if self._bar is not None:
            return float(self._bar.format_dict["rate"] or 0)
        if self._task is None:
            return 0.0
        return self._task.done / max(TRACKER.clock() - self._task.started, 1e-9)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._task is not None:
            TRACKER.end(self._task)


def counted(items: Iterable[T], name: str, total: int | None, unit: str) -> Iterator[T]:
    """`items`, counted as they are taken."""
    if total is None:
        total = len(items) if isinstance(items, Sized) else None
    counter = Counter(name, total, unit)
    try:
        for item in items:
            yield item
            counter.update()
    finally:
        counter.close()


@contextmanager
def working(name: str) -> Iterator[None]:
    """A step without countable items: its name and seconds are shown where it takes long."""
    task = TRACKER.begin(name)
    _tell(Progress(name))
    try:
        yield
    finally:
        TRACKER.end(task)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Within the block progress goes to `listener`, if there is one, not to stderr. What it raises ends the work."""
    if listener is None:
        yield
        return
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def _tell(told: Progress) -> None:
    if _listeners:
        _listeners[-1](told)


@contextmanager
def heartbeat(name: str) -> Iterator[None]:
    """The whole command: while it runs, a thread sees to it that lines come and that a terminal shows long steps."""
    stop = threading.Event()
    thread = threading.Thread(target=_beat, args=(stop,), name="progress", daemon=True)
    with working(name):
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(5)
            TRACKER.forget()


@contextmanager
def past_bars() -> Iterator[None]:
    """Bars are taken off the terminal while a line is written, and drawn again below it."""
    tqdm = sys.modules.get("tqdm")
    if tqdm is None or not getattr(tqdm.tqdm, "_instances", None):
        yield
        return
    with tqdm.tqdm.external_write_mode(file=sys.stderr):
        yield


def _beat(stop: threading.Event) -> None:
    status = None
    while not stop.wait(BEAT_S):
        if _silent():
            continue
        with contextlib.suppress(OSError, ValueError):  # nobody reads stderr any more
            if sys.stderr.isatty():
                status = _show_status(status)
            else:
                TRACKER.beat()
    if status is not None:
        status.close()


def _show_status(status: Any | None) -> Any | None:
    """On a terminal: the innermost step without countable items, with its seconds, unless a bar is there."""
    task = TRACKER.innermost()
    others = [bar for bar in getattr(_tqdm(), "_instances", ()) if bar is not status]
    now = TRACKER.clock()
    if task is None or others or now - task.started < STATUS_AFTER_S:
        if status is not None:
            status.close()
        return None
    if status is None:
        status = _tqdm()(total=0, bar_format="{desc}", file=sys.stderr, leave=False)
    status.set_description_str(task.describe(now))
    return status


def _line_every_s() -> float:
    try:
        return float(os.environ.get("DUNE_PROGRESS_S") or LINE_EVERY_S)
    except ValueError:
        return LINE_EVERY_S


def _silent() -> bool:
    """--quiet, one of several processes of torchrun that is not the first, or somebody else listens."""
    return quiet or bool(_listeners) or os.environ.get("RANK", "0") not in ("", "0")


def _tqdm() -> Any:
    from tqdm import tqdm

    return tqdm


def _write(text: str) -> None:
    if not _silent():
        print(text, file=sys.stderr, flush=True)


TRACKER = ProgressTracker(_write)
