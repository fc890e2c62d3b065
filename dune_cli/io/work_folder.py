"""A folder for what was computed once, keyed by what it depends on, so that a second run, or one that was killed, goes
on.

Every entry is one file of cache_files.py that is there whole or not at all: `KIND/ab/KEY.safetensors`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from dune_cli import __version__
from dune_cli.errors import UserError
from dune_cli.io.atomic import check_output_folder
from dune_cli.io.cache_files import Layout, read_cached, write_cached

SCHEMA = "dune.work/1"
NAME = "dune-work"


class WorkFolder:
    """Arrays by kind and key. `counts` tells what a run computed ("KIND") and what it found ("KIND, found").

    `folder` None: nothing is kept.
    """

    def __init__(self, folder: str | Path | None) -> None:
        """UserError where `folder` is a file or cannot be written to."""
        self.folder = None if folder is None else Path(folder).expanduser()
        self.counts: Counter[str] = Counter()
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"the work folder {self.folder} cannot be made: {error.strerror}; name another one with --work"
            ) from error

    def has(self, kind: str, key: str) -> bool:
        """Whether there is such an entry; what is in it, `read` finds out."""
        return self.folder is not None and self._path(kind, key).is_file()

    def read(self, kind: str, key: str, layout: Layout | None = None) -> dict[str, np.ndarray] | None:
        """The arrays of an entry, None where there is none.

        One that is damaged, was changed, or lacks the arrays of `layout` (`cache_files.check_layout`) is removed, and a
        note says so.
        """
        if self.folder is None:
            return None
        path = self._path(kind, key)
        arrays = read_cached(path, f"{SCHEMA} {kind}", key, layout=layout)
        if arrays is None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        self.counts[f"{kind}, found"] += 1
        return arrays

    def write(self, kind: str, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps the arrays; OSError of a full disk passes, and what was kept before stays."""
        self.counts[kind] += 1
        if self.folder is None:
            return
        path = self._path(kind, key)
        if path.is_dir():
            raise UserError(f"{path} is a folder where the work folder keeps a file; remove it")
        write_cached(path, f"{SCHEMA} {kind}", key, arrays)

    def arrays(
        self,
        kind: str,
        key: Callable[[], str],
        make: Callable[[], Mapping[str, np.ndarray]],
        layout: Layout | None = None,
    ) -> Mapping[str, np.ndarray]:
        """What `read` finds under `key()`; else that of `make`, then kept."""
        if self.folder is None:
            return make()
        name = key()
        found = self.read(kind, name, layout)
        if found is None:
            found = dict(make())
            self.write(kind, name, found)
        return found

    def entries(self, kind: str) -> list[Path]:
        """The files of a kind."""
        return [] if self.folder is None else list((self.folder / kind).glob("*/[!.]*.safetensors"))

    def bytes_of(self, kind: str) -> int:
        """What the entries of a kind take on the disk."""
        return sum(path.stat().st_size for path in self.entries(kind))

    def _path(self, kind: str, key: str) -> Path:
        assert self.folder is not None
        return self.folder / kind / key[:2] / f"{key}.safetensors"


def open_work(asked: str | Path | None, beside: Path) -> tuple[WorkFolder, str]:
    """The folder that was `asked` for (UserError if it cannot be written), else "dune-work" in `beside`; where that is
    read-only none, and the second value says so."""
    if asked is not None:
        return WorkFolder(check_output_folder(asked, overwrite=True)), ""
    try:
        return WorkFolder(check_output_folder(beside / NAME, overwrite=True)), ""
    except UserError as error:
        return WorkFolder(None), f"nothing is kept for the next run, name a --work folder ({error})"


def key_of(*parts: object) -> str:
    """32 hexadecimal digits of what an entry depends on: names, hashes, numbers; and the version of dune."""
    text = json.dumps([__version__, *parts], ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
