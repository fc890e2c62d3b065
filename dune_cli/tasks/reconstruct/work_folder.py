"""The work folder of a reconstruction: what was computed once, keyed by what it depends on, so that a second run, or
one that was killed, goes on.

Every entry is one safetensors file that is there whole or not at all: `KIND/ab/KEY.safetensors`.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dune_cli import __version__, console
from dune_cli.errors import UserError
from dune_cli.io.atomic import atomic_path


class WorkFolder:
    """Arrays by kind and key. `counts` tells what a run computed ("KIND") and what it found ("KIND, found")."""

    def __init__(self, folder: str | Path) -> None:
        """UserError where `folder` is a file or cannot be written to."""
        self.folder = Path(folder).expanduser()
        self.counts: Counter[str] = Counter()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"the work folder {self.folder} cannot be made: {error.strerror}; name another one with --work"
            ) from error

    def has(self, kind: str, key: str) -> bool:
        """Whether there is such an entry."""
        return self._path(kind, key).exists()

    def read(self, kind: str, key: str) -> dict[str, np.ndarray] | None:
        """The arrays of an entry, None where there is none; a damaged one is removed, and a note says so."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        path = self._path(kind, key)
        try:
            arrays = load(path.read_bytes())
        except FileNotFoundError:
            return None
        except SafetensorError:
            console.note(f"{path} is damaged; it is computed again")
            path.unlink()
            return None
        self.counts[f"{kind}, found"] += 1
        return arrays

    def write(self, kind: str, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps the arrays; OSError of a full disk passes, and what was kept before stays."""
        from safetensors.numpy import save

        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        with atomic_path(self._path(kind, key)) as temporary:
            temporary.write_bytes(content)
        self.counts[kind] += 1

    def bytes_of(self, kind: str) -> int:
        """What the entries of a kind take on the disk."""
        return sum(path.stat().st_size for path in (self.folder / kind).glob("*/[!.]*.safetensors"))

    def _path(self, kind: str, key: str) -> Path:
        return self.folder / kind / key[:2] / f"{key}.safetensors"


def key_of(*parts: object) -> str:
    """32 hexadecimal digits of what an entry depends on: names, hashes, numbers; and the version of dune."""
    text = json.dumps([__version__, *parts], ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
