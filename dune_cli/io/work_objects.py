"""The files of a work folder in an object store, by fsspec: s3://, gs://, az://, memory:// and others.

A store answers slowly and lists quickly, so that what is there is known from a listing. Files that other processes
write meanwhile are seen LISTING_S later at the latest; what is computed twice until then has the same bytes.
"""

from __future__ import annotations

import time

from dune_cli.errors import UserError
from dune_cli.io.object_stores import ObjectStore
from dune_cli.io.safe_read import ARRAYS_LIMIT_BYTES

LISTING_S = 30.0  # the age of a listing, from which on a file that it lacks is looked for by a new one


class WorkObjects:
    """Files KIND/NAME below a `url`."""

    def __init__(self, url: str) -> None:
        """UserError for a URL that cannot be used, PackageMissing where the package of its store is not installed."""
        self.url = url.rstrip("/")
        self._store = ObjectStore(self.url)
        self._listings: dict[str, tuple[float, dict[str, int]]] = {}

    def has(self, kind: str, name: str) -> bool:
        """Whether the store has the file."""
        return name in self._listing(kind) or name in self._listing(kind, LISTING_S)

    def read(self, kind: str, name: str) -> bytes:
        """The content of a file. UserError where it cannot be read, or is too large to be one of a work folder."""
        size = self._listing(kind).get(name, 0)
        if size > ARRAYS_LIMIT_BYTES:
            raise UserError(f"{self.url}/{kind}/{name} has {size} bytes, at most {ARRAYS_LIMIT_BYTES} are read")
        return self._store.read(self._path(kind, name))

    def write(self, kind: str, name: str, content: bytes) -> None:
        """Writes a file, which the store shows when it is whole. UserError where it cannot."""
        self._store.write(self._path(kind, name), content)
        self._listing(kind)[name] = len(content)

    def remove(self, kind: str, name: str) -> None:
        """Removes a file, if it is there."""
        self._store.remove(self._path(kind, name))
        self._listing(kind).pop(name, None)

    def sizes(self, kind: str) -> dict[str, int]:
        """The files of a kind as they are now, with their bytes."""
        return dict(self._listing(kind, 0.0))

    def _listing(self, kind: str, age_s: float | None = None) -> dict[str, int]:
        """The names of a kind's files and their bytes, from a listing that is at most `age_s` old (None: any)."""
        taken, names = self._listings.get(kind, (None, {}))
        if taken is None or (age_s is not None and time.monotonic() - taken >= age_s):
            folder = self._path(kind, "")
            names = {path[len(folder) :]: size for path, size in self._store.find(folder).items()}
            self._listings[kind] = (time.monotonic(), names)
        return names

    def _path(self, kind: str, name: str) -> str:
        return f"{self._store.path}/{kind}/{name}"
