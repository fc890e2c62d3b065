"""The output folder of a run in shards, local or in an object store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from dune_cli.errors import UserError
from dune_cli.io.object_stores import ObjectStore, is_url
from dune_cli.io.outputs import atomic_path, check_output_folder, scratch_folder
from dune_cli.io.safe_read import TEXT_LIMIT_BYTES, read_bytes
from dune_cli.provenance import sha256_of

TEMPORARY = ".dune-"


class ShardFolder:
    """Files by names such as "shards/encode-00000000.parquet". A file is whole or not there.

    `place`: a path or a URL; a path is made absolute, so that other processes find it.
    """

    def __init__(self, place: str) -> None:
        self.is_local = not is_url(place)
        self.place = os.path.abspath(Path(place).expanduser()) if self.is_local else place.rstrip("/")  # noqa: PTH100

    def __getstate__(self) -> dict[str, object]:
        return {"is_local": self.is_local, "place": self.place}

    @cached_property
    def _store(self) -> ObjectStore:
        return ObjectStore(self.place)

    def check(self) -> None:
        """UserError where the folder cannot be written to."""
        if self.is_local:
            check_output_folder(self.place, overwrite=True)
        elif not is_url(self.place):  # "s3://", of which only "s3:" is left
            raise UserError(f"the output {self.place}// is a URL without a folder; name one, such as {self.place}//a/b")
        else:
            _ = self._store

    def path(self, name: str) -> Path:
        """A file of a local folder."""
        return Path(self.place, name)

    def shown(self, name: str) -> str:
        """A file's path or URL."""
        return f"{self.place}/{name}"

    def size_bytes(self, name: str) -> int | None:
        """The size of a file; None where there is none."""
        if not self.is_local:
            return self._store.size_bytes(f"{self._store.path}/{name}")
        try:
            return self.path(name).stat().st_size
        except OSError:
            return None

    def names(self, inside: str = "") -> set[str]:
        """The names of what is directly in it, or in its folder `inside`, without temporary files; none where it does
        not exist."""
        if self.is_local:
            place = self.path(inside)
            found = set(os.listdir(place)) if place.is_dir() else set()  # noqa: PTH208
        else:
            try:
                found = {entry.name for entry in self._store.entries(f"{self._store.path}/{inside}".rstrip("/"))}
            except UserError:
                return set()
        return {name for name in found if not name.startswith(TEMPORARY)}

    def read(self, name: str, what: str, limit_bytes: int = TEXT_LIMIT_BYTES) -> bytes:
        """The content of a file. UserError where it cannot be read."""
        if self.is_local:
            return read_bytes(self.path(name), what, limit_bytes)
        return self._store.read(f"{self._store.path}/{name}")

    def sha256(self, name: str) -> str:
        """Of a file's content. UserError or OSError where it cannot be read."""
        if self.is_local:
            return sha256_of(self.path(name))
        return self._store.sha256(f"{self._store.path}/{name}")

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local path to write to; after the block the file is in the folder, after an exception it is not."""
        if self.is_local:
            with atomic_path(self.path(name)) as temporary:
                yield temporary
            return
        with scratch_folder() as scratch:
            temporary = scratch / Path(name).name
            yield temporary
            self._store.put(temporary, f"{self._store.path}/{name}")

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file."""
        with self.writing(name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @contextlib.contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Whether no other process works on the file `name`, which this one then claims for the block.

        The system ends the claim of a process that is killed. In an object store everything is free: two processes that
        write the same file write the same bytes.
        """
        if not self.is_local:
            yield True
            return
        import filelock

        path = self.path(f"{name}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, blocking=False)
        try:
            lock.acquire()
        except filelock.Timeout:
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
            lock.release()

    def sweep(self) -> None:
        """Removes what killed processes have left, when nobody writes to it."""
        if self.is_local:
            for pattern in (f"{TEMPORARY}*", f"*/{TEMPORARY}*", "*/*.lock"):
                for path in Path(self.place).glob(pattern):
                    path.unlink(missing_ok=True)
