"""What the weights folder remembers: one process at a time per file, and the hash each file had at first."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from dune_cli.errors import CheckpointError, UserError
from dune_cli.io.fields import Fields
from dune_cli.io.safe_read import MIB, read_json
from dune_cli.io.texts import quoted

LOCK_FILE = "lock.json"
LOCK_LIMIT_BYTES = 16 * MIB


@dataclass(frozen=True)
class Pin:
    """The first hash seen of a file in the weights folder, and where the file came from."""

    sha256: str
    size_bytes: int
    source: str
    pinned: str  # date, UTC


@contextmanager
def only_one(folder: Path, name: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds `folder/.locks/name.lock` for this process; waits while another one holds it (`on_wait` is called once).

    The operating system drops the lock when its process ends, however it ends, so there are no stale locks.
    """
    path = folder / ".locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if not _try_lock(file):
            if on_wait is not None:
                on_wait()
            while not _try_lock(file):
                time.sleep(0.1)
        yield


def read_pins(folder: Path) -> dict[str, Pin]:
    """File name to Pin. Raises CheckpointError if lock.json was damaged."""
    path = folder / LOCK_FILE
    if not os.path.lexists(path):
        return {}
    try:
        files = Fields(read_json(path, "lock.json", LOCK_LIMIT_BYTES), LOCK_FILE).object("files")
        return {name: _pin_of(files.object(name)) for name in files}
    except UserError as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); restore it, or delete it to forget the first hashes"
        ) from error


def _pin_of(fields: Fields) -> Pin:
    unknown = sorted(set(fields) - set(Pin.__dataclass_fields__))
    if unknown:
        raise UserError(f"{fields.where} has the unknown field {quoted(unknown[0])}")
    sha256 = fields.text("sha256")
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise UserError(f"{fields.where}: sha256 is not 64 hexadecimal digits")
    return Pin(sha256, fields.integer("size_bytes", low=0), fields.text("source"), fields.text("pinned"))


def pin(folder: Path, name: str, sha256: str, size_bytes: int, source: str) -> Pin:
    """Remembers the hash of a file for good. Returns the pin, which is the older one if the file is pinned already."""
    with only_one(folder, LOCK_FILE):
        pins = read_pins(folder)
        if name in pins:
            return pins[name]
        pins[name] = Pin(sha256, size_bytes, source, time.strftime("%Y-%m-%d", time.gmtime()))
        document = {"schema": "dune.lock/1", "files": {key: asdict(pins[key]) for key in sorted(pins)}}
        _replace(folder / LOCK_FILE, json.dumps(document, indent=1) + "\n")
        return pins[name]


def _replace(path: Path, text: str) -> None:
    """Writes beside `path`, then renames; the caller holds the lock, so there is one writer."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
