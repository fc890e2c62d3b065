"""Damaged files through the doors of dune: each is read as what it says, or refused with one sentence.

A family is one file `tests/fuzz/family_NAME.py` with one function:

    def samples(folder: Path) -> Sequence[Sample]

It is called once, with an empty folder for whatever it needs to make whole files or to keep beside them (photos of a
map, a network's weights), and returns whole inputs. A `Sample` has

- `files`: {path below the case's folder: bytes}. Every case starts from all of them; one (now and then two) is damaged.
- `read(folder)`: the door, called in this process with the folder that holds the files. It returns a value, or raises a
  DuneError whose message is one line of at most 600 characters. Anything else is a failure: another exception, a
  warning of Python's, a line on stderr that is no `console.note`, 20 s, or 600 MB of memory more than before.
- `accept(value)`: asserts that the value is no nonsense (finite, in range, of the right shapes). Where the door is to
  notice every damage (checksums), let it compare with what was written.
- `targets`: which of the files are damaged, all by default.
- `kinds`: {path: kind of damage} where the ending of the name does not say it. Kinds are those of `KINDS` in
  mutators.py: "json", "jsonl", "text", "npz", "zip", "safetensors", "png", "jpeg", "tiff", "bytes". A new one is a
  function added there.

`python -m pytest -n 0 tests/fuzz -k NAME --fuzz 10000` runs more cases than CI's 200, `--fuzz-from N` begins elsewhere;
the counts are printed with `-s`. A failing case is named by its number and its files are kept below pytest's temporary
folder, so `--fuzz 1 --fuzz-from N` runs it alone. Cases depend on the family's name and the number alone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dune_cli import console
from dune_cli.errors import DuneError
from fuzz.mutators import mutate

SECONDS = 20.0
GROWTH_BYTES = 600 << 20
ADDRESS_SPACE_BYTES = 2 << 30  # more than this at once is refused by the system: MemoryError, not a dead machine
LONGEST_MESSAGE = 600
FAILURES_TOLD = 8


@dataclass(frozen=True)
class Sample:
    """A whole input and the door that reads it; see the module's docstring."""

    files: Mapping[str, bytes]
    read: Callable[[Path], Any]
    accept: Callable[[Any], None]
    targets: Sequence[str] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)


def whole_samples(samples: Sequence[Sample], folder: Path) -> None:
    """AssertionError unless every sample is accepted undamaged."""
    for number, sample in enumerate(samples):
        case = folder / "case"
        _write(case, sample.files)
        outcome = check(sample, case)
        assert outcome == "accepted", f"the whole sample {number} is {outcome}"


def fuzz(name: str, samples: Sequence[Sample], count: int, first: int, folder: Path) -> Counter[str]:
    """Runs the cases `first` to `first + count` of a family; returns how many were accepted and refused.

    AssertionError names the first failures by number; their files are kept below `folder`.
    """
    counts: Counter[str] = Counter(accepted=0, refused=0)
    told: dict[str, str] = {}
    case = folder / "case"
    start = time.perf_counter()
    with _limited_memory():
        for number in range(first, first + count):
            rng = random.Random(f"{name}/{number}")
            sample = rng.choice(samples)
            files = damaged(sample, rng)
            _write(case, files)
            outcome = check(sample, case)
            counts[outcome if outcome in counts else "failed"] += 1
            if outcome not in ("accepted", "refused"):
                kind = outcome.splitlines()[0][:80]
                if kind not in told and len(told) < FAILURES_TOLD:
                    told[kind] = f"case {number}: {outcome}"
                    shutil.copytree(case, folder / f"case-{number}")
    print(f"\nfuzz {name}: {count} cases, {dict(counts)}, {time.perf_counter() - start:.1f} s", file=sys.stdout)
    assert not told, f"{counts['failed']} of {count} cases of {name} failed, such as\n" + "\n".join(told.values())
    return counts


def damaged(sample: Sample, rng: random.Random) -> dict[str, bytes]:
    """The sample's files, one or two of them damaged."""
    files = dict(sample.files)
    targets = list(sample.targets or files)
    for path in rng.sample(targets, min(len(targets), 2 if rng.random() < 0.1 else 1)):
        files[path] = mutate(files[path], sample.kinds.get(path) or Path(path).suffix.lstrip("."), rng)
    return files


def check(sample: Sample, folder: Path) -> str:
    """What reading came to: "accepted", "refused", or what is wrong with it."""
    notes: list[str] = []
    before = _peak_bytes()
    start = time.perf_counter()
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # where even a signal would not be heard
    try:
        with _stderr() as said, warnings.catch_warnings(record=True) as warned, _notes_into(notes):
            warnings.simplefilter("always")
            outcome = _outcome(sample, folder)
    finally:
        faulthandler.cancel_dump_traceback_later()
    seconds = time.perf_counter() - start
    if warned:
        return f"warning: {warned[0].category.__name__}: {warned[0].message} ({warned[0].filename}:{warned[0].lineno})"
    if text := said():
        return f"stderr: {text[:300]}"
    if long := [note for note in notes if len(note) > LONGEST_MESSAGE or "\n" in note]:
        return f"a note is not one line: {long[0][:700]!r}"
    if seconds > SECONDS:
        return f"time: {seconds:.1f} s"
    if (growth := _peak_bytes() - before) > GROWTH_BYTES:
        return f"memory: {growth >> 20} MB more than before"
    return outcome


def _outcome(sample: Sample, folder: Path) -> str:
    try:
        value = sample.read(folder)
    except DuneError as error:
        message = str(error)
        if "\n" in message or "\r" in message or not 0 < len(message) <= LONGEST_MESSAGE:
            return f"the message is not one line of at most {LONGEST_MESSAGE} characters: {message[:700]!r}"
        return "refused"
    except Exception as error:
        places = traceback.extract_tb(error.__traceback__)
        ours = next((place for place in reversed(places) if "dune_cli" in place.filename), places[-1])
        where = f"{Path(ours.filename).name}:{ours.lineno}"
        return f"{type(error).__name__} at {where}: {str(error)[:300]}\n" + "".join(
            traceback.format_tb(error.__traceback__)[-3:]
        )
    try:
        sample.accept(value)
    except Exception as error:
        places = traceback.extract_tb(error.__traceback__)
        return f"accepted nonsense ({places[-1].lineno}: {places[-1].line}): {str(error)[:300]}"
    return "accepted"


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def _limited_memory() -> Iterator[None]:
    """The process may map `ADDRESS_SPACE_BYTES` more than now (where /proc tells how much it has)."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    wanted = now + ADDRESS_SPACE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (wanted if soft == resource.RLIM_INFINITY else min(wanted, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def _notes_into(notes: list[str]) -> Iterator[None]:
    real, console.note = console.note, notes.append
    try:
        yield
    finally:
        console.note = real


@contextlib.contextmanager
def _stderr() -> Iterator[Callable[[], str]]:
    """What Python and C libraries wrote to file descriptor 2, after the block."""
    text = ""
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: text
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            if os.lseek(file.fileno(), 0, os.SEEK_END):
                os.lseek(file.fileno(), 0, os.SEEK_SET)
                text = os.read(file.fileno(), 4096).decode("utf-8", "replace")
