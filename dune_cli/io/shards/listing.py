"""The photos below folders and URLs, in one order that depends on their paths alone."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dune_cli.errors import UserError
from dune_cli.io.inputs import IMAGE_SUFFIXES, RAW_SUFFIXES, VIDEO_SUFFIXES, expand
from dune_cli.io.object_stores import ObjectStore, is_url
from dune_cli.io.photo_names import companions, is_utf8

ENDINGS = frozenset(IMAGE_SUFFIXES)


@dataclass(frozen=True, order=True, slots=True)
class ListedFile:
    """A photo: its absolute path or URL, and its size."""

    place: str
    size_bytes: int


def list_photos(inputs: Sequence[str], left_out: Counter[str]) -> Iterator[ListedFile]:
    """The photos that `inputs` name, each once, in the order of the bytes of their paths; memory holds one folder.

    A folder or URL stands for all images below it, by their endings, without hidden files and folders; links to folders
    are not followed. A file is taken whatever its ending. `left_out` counts what else was met, by kind. UserError for
    an input that does not exist or cannot be read.
    """
    sources = [_photos_of(text, left_out) for text in inputs]
    last = None
    for file in heapq.merge(*sources) if len(sources) > 1 else sources[0]:
        if file.place != last:
            yield file
        last = file.place


def _photos_of(text: str, left_out: Counter[str]) -> Iterator[ListedFile]:
    if is_url(text):
        store = ObjectStore(text)
        if store.is_folder():
            return _below(_StoredFolder(store), store.path, left_out)
        return iter([ListedFile(store.url(store.path), store.size_bytes(store.path) or 0)])
    path = Path(text).expanduser()
    if path.is_dir():
        return _below(_LocalFolder(), os.path.abspath(path), left_out)  # noqa: PTH100
    files = (os.path.abspath(file) for file in expand([text]))  # noqa: PTH100
    return iter(sorted(ListedFile(file, os.stat(file).st_size) for file in files))  # noqa: PTH116


class _LocalFolder:
    """(name, is a folder, size) of what is in a folder."""

    def entries(self, folder: str, left_out: Counter[str]) -> Iterator[tuple[str, bool, int]]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        yield entry.name, True, 0
                    elif entry.is_file():
                        yield entry.name, False, entry.stat().st_size
                    else:
                        left_out["links to folders, broken links and devices"] += 1
        except OSError as error:
            raise UserError(f"cannot read the folder {folder}: {error.strerror or error}") from error

    def place(self, path: str) -> str:
        return path


class _StoredFolder:
    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def entries(self, folder: str, left_out: Counter[str]) -> Iterator[tuple[str, bool, int]]:
        for entry in self.store.entries(folder):
            yield entry.name, entry.is_folder, entry.size_bytes

    def place(self, path: str) -> str:
        return self.store.url(path)


def _below(source: _LocalFolder | _StoredFolder, folder: str, left_out: Counter[str]) -> Iterator[ListedFile]:
    """A folder sorts as its name with a slash, which makes the order of whole paths."""
    kept: list[tuple[str, int]] = []
    for name, is_folder, size in source.entries(folder, left_out):
        if name.startswith("."):
            continue
        if not is_utf8(name):
            left_out["names that are not UTF-8"] += 1
        elif is_folder:
            kept.append((f"{name}/", 0))
        elif _ending(name) in ENDINGS:
            kept.append((name, size))
        elif _ending(name) in VIDEO_SUFFIXES:
            left_out["videos"] += 1
        elif _ending(name) in RAW_SUFFIXES:
            left_out["raw files"] += 1
    masks = _masks_among(name for name, _ in kept)
    left_out["masks and maps beside a photo"] += len(masks)
    for name, size in sorted(kept):
        if name.endswith("/"):
            yield from _below(source, f"{folder}/{name[:-1]}", left_out)
        elif name not in masks:
            yield ListedFile(source.place(f"{folder}/{name}"), size)


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def _masks_among(names: Iterable[str]) -> set[str]:
    """As `companions`; most folders hold no name that could be one."""
    images = [name for name in names if not name.endswith("/")]
    lower = [name.lower() for name in images]
    if not any("mask" in name or "depth" in name or _ending(name.rpartition(".")[0]) in ENDINGS for name in lower):
        return set()
    return {path.name for path in companions(map(Path, images), ())}
