"""A JSON Lines file that grows line by line and that the same command continues after it was stopped.

Until the file is complete, `FILE.run` beside it holds the settings of the run. One run at a time writes a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.io.cache import LINES_LIMIT_BYTES, add_checksum, note_damaged, verified
from dune_cli.io.json_files import json_line, write_json
from dune_cli.io.safe_read import MIB, open_regular, parse_json, read_json

LINE_LIMIT_BYTES = 16 * MIB
_BINARY = getattr(os, "O_BINARY", 0)  # of Windows


class ResumableLines:
    """The lines of one run. `settings`: what the lines depend on, plain JSON values."""

    def __init__(self, target: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
        """UserError where the file belongs to an unfinished run with other settings, unless `overwrite`."""
        self.target, self._marker = target, _marker_of(target)
        self._settings = json.loads(json_line(settings))
        self._end = 0
        recorded = self._recorded()
        self._continues = recorded == self._settings
        if recorded is not None and not self._continues and not overwrite:
            changed = sorted(k for k in recorded | self._settings if recorded.get(k) != self._settings.get(k))
            raise UserError(
                f"{target} holds an unfinished run with other settings ({', '.join(changed)[:200]}); repeat those, add "
                "--overwrite to start anew, or name another output"
            )

    def _recorded(self) -> dict[str, Any] | None:
        if not is_unfinished(self.target):
            return None
        try:
            settings = verified(read_json(self._marker, "the settings of a run"))
        except UserError as error:
            note_damaged(self._marker, error)
            return None
        if settings is None:
            note_damaged(self._marker, "its checksum does not fit")
        return settings

    def keep(self, accept: Callable[[int, dict[str, Any]], bool]) -> int:
        """The number of lines at the beginning of the file that stay: those of a run with the same settings, as long as
        `accept` takes (number of the line, its object). The rest of the file is cut off when it is opened."""
        count = 0
        if self._continues and self.target.is_file():
            with open_regular(self.target, "the lines of a run", LINES_LIMIT_BYTES) as file:
                while (line := file.readline(LINE_LIMIT_BYTES)).endswith(b"\n"):
                    tree = _parsed(line)
                    if tree is None or not accept(count, tree):
                        break
                    count, self._end = count + 1, file.tell()
        return count

    @contextmanager
    def open(self) -> Iterator[Callable[[Any], None]]:
        """A function that adds a line, which is in the file when it returns. After the block the run is complete; after
        an exception it can be continued. UserError while another process writes the file."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        # not emptied before it is known that nobody else writes it
        with os.fdopen(os.open(self.target, os.O_RDWR | os.O_CREAT | _BINARY, 0o666), "r+b") as file:
            if not _locked(file):
                raise UserError(
                    f"another run writes {self.target} at this moment; wait for its end, or name another output"
                )
            file.truncate(self._end)
            file.seek(self._end)
            # after the old file's lines are gone, which are not of this run
            write_json(self._marker, add_checksum(self._settings))

            def add(value: Any) -> None:
                file.write(json_line(value).encode("ascii") + b"\n")
                file.flush()

            yield add
        self._marker.unlink(missing_ok=True)


def _locked(file: IO[bytes]) -> bool:
    """Whether this process alone may write the file from now on, until it is closed. The system takes the lock off a
    process that is killed. Where the system or the file's disk has no locks, every process may."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # some network disks
    return True


def is_unfinished(target: Path) -> bool:
    """Whether `target` is the file of a run that was stopped."""
    return _marker_of(target).is_file() and target.is_file()


def _marker_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.run")


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        tree = parse_json(line, "a line")
    except ValueError:  # UserError and UnicodeDecodeError are ValueErrors
        return None
    return tree if isinstance(tree, dict) else None


def note_continued(done: int, total: int, target: Path, what: str) -> None:
    """A note that an earlier run did a part of the work."""
    if done:
        console.note(f"{done} of {total} {what} are in {target} from a run that was stopped; it goes on with the rest")
