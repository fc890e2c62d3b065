"""Files of object stores by URL (s3://bucket/key, gs://, az://, memory://), through fsspec.

fsspec comes with torch. The package of a store (s3fs, gcsfs, adlfs) reads credentials from its own environment.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dune_cli import optional
from dune_cli.errors import PackageMissing, UserError
from dune_cli.io.safe_read import MIB, read_bytes

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_url(text: str) -> bool:
    """Whether `text` begins with a scheme, such as s3://."""
    return _URL.match(text) is not None


@dataclass(frozen=True)
class StoredEntry:
    """A file, or a folder, that a store lists. `path` is the store's own, `name` its last part."""

    path: str
    name: str
    is_folder: bool
    size_bytes: int


class ObjectStore:
    """The file or folder of one URL, and what is below it. `path` is the store's own."""

    def __init__(self, url: str) -> None:
        """UserError for an unknown scheme; PackageMissing where the package of the store is not installed."""
        fsspec = optional.require("fsspec", f"the URL {url}", extra="large")
        scheme = url.partition("://")[0].lower()
        try:
            # a listing that is kept would grow with the store
            self._files, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            implementations = optional.require("fsspec.registry", url).known_implementations
            known = implementations.get(scheme, {"class": scheme})
            package = known["class"].partition(".")[0]
            raise PackageMissing(
                f"the URL {url} needs the package {package}, which is not installed; run: pip install {package}"
            ) from error
        except ValueError as error:
            raise UserError(f"the URL {url} cannot be opened ({_sentence(error)}); check its scheme") from error
        except Exception as error:  # each store has its own; some connect at once
            raise UserError(f"cannot use {url}: {_sentence(error)}; check the URL and the credentials") from error
        self.path = path.rstrip("/")

    def url(self, path: str) -> str:
        """The URL of a path of the store."""
        return self._files.unstrip_protocol(path)

    def is_folder(self) -> bool:
        """Whether the URL is a folder (a prefix). UserError where there is nothing."""
        try:
            if self._files.isdir(self.path):
                return True
            if self._files.exists(self.path):
                return False
        except Exception as error:  # each store has its own
            raise self._error(self.path, error) from error
        raise UserError(f"there is nothing at {self.url(self.path)}; check the URL and the credentials")

    def entries(self, folder: str) -> Iterator[StoredEntry]:
        """What is directly in a folder, in no order."""
        try:
            rows = self._files.ls(folder, detail=True)
        except Exception as error:
            raise self._error(folder, error) from error
        for row in rows:
            path = row["name"].rstrip("/")
            if path != folder:
                is_folder = row["type"] == "directory"
                yield StoredEntry(path, path.rpartition("/")[2], is_folder, int(row.get("size") or 0))

    def size_bytes(self, path: str) -> int | None:
        """The size of a file; None where there is none."""
        try:
            return int(self._files.info(path)["size"])
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._error(path, error) from error

    def read(self, path: str) -> bytes:
        """The content of a file. UserError where it cannot be read."""
        try:
            return self._files.cat_file(path)
        except FileNotFoundError as error:
            raise UserError(f"no such file: {self.url(path)}; check the URL") from error
        except Exception as error:
            raise self._error(path, error) from error

    def sha256(self, path: str) -> str:
        """Of a file's content, read in pieces of 1 MiB."""
        digest = hashlib.sha256()
        try:
            with self._files.open(path, "rb") as file:
                while piece := file.read(MIB):
                    digest.update(piece)
        except Exception as error:
            raise self._error(path, error) from error
        return digest.hexdigest()

    def put(self, local: Path, path: str) -> None:
        """Uploads a local file. The store shows it when it is whole."""
        try:
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(local), path)
        except Exception as error:
            raise self._error(path, error) from error

    def write(self, path: str, content: bytes) -> None:
        """Writes a file. The store shows it when it is whole. UserError where it cannot be written."""
        try:
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(path, content)
        except Exception as error:
            raise self._error(path, error) from error

    def remove(self, path: str) -> None:
        """Removes a file, if it is there."""
        try:
            self._files.rm_file(path)
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._error(path, error) from error

    def find(self, folder: str) -> dict[str, int]:
        """The paths of all files below a folder, and their bytes. Empty where it is not there."""
        try:
            rows = self._files.find(folder, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise self._error(folder, error) from error
        return {path: int(row.get("size") or 0) for path, row in rows.items()}

    def _error(self, path: str, error: Exception) -> UserError:
        return UserError(f"cannot use {self.url(path)}: {_sentence(error)}; check the URL and the credentials")


def read_place(place: str, what: str, limit_bytes: int) -> bytes:
    """The content of a file by its path or URL. UserError where it cannot be read, or where a local one is larger than
    `limit_bytes`; `what` names its kind."""
    if not is_url(place):
        return read_bytes(place, what, limit_bytes)
    store = ObjectStore(place)
    return store.read(store.path)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
