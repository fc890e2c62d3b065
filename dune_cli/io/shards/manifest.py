"""The manifest of a run in shards: which photo is in which row of which shard, as Parquet files.

A shard holds `photos_per_shard` photos that follow each other in the manifest; only the last of a part may hold fewer.
A part is never changed; photos that come later are a part of their own.
"""

from __future__ import annotations

import heapq
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dune_cli import optional
from dune_cli.errors import UserError
from dune_cli.io.json_files import Fields
from dune_cli.io.safe_read import MIB
from dune_cli.io.shards.folder import ShardFolder
from dune_cli.io.shards.listing import ListedFile
from dune_cli.provenance import sha256_of

if TYPE_CHECKING:
    import pyarrow.parquet

LEAST_GROUP = 1000  # rows of a row group, which a process reads for a shard
PART_LIMIT_BYTES = 8192 * MIB
WHY = "--shards"


def parquet_module() -> Any:
    """pyarrow.parquet. PackageMissing without the extra "large"."""
    return optional.require("pyarrow.parquet", WHY, extra="large")


@dataclass(frozen=True)
class ManifestPart:
    """A file of the manifest, and where its photos are among all rows and shards."""

    file: str
    photos: int
    first_row: int
    first_shard: int
    shards: int
    sha256: str

    @classmethod
    def read(cls, fields: Fields) -> ManifestPart:
        """From JSON. UserError for what is none."""
        numbers = {name: fields.integer(name, low=0) for name in ("photos", "first_row", "first_shard", "shards")}
        return cls(file=fields.text("file"), sha256=fields.text("sha256"), **numbers)

    def as_json(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ManifestShard:
    """The photos of a shard: `files` in the order of its rows, the first of which has the number `first_row`."""

    number: int
    first_row: int
    files: tuple[ListedFile, ...]


def write_part(
    folder: ShardFolder, files: Iterable[ListedFile], before: Sequence[ManifestPart], photos_per_shard: int
) -> ManifestPart | None:
    """Writes `files` as the part after those of `before`; None, and no file, where there are none. OSError passes."""
    name = f"manifest/{len(before):05d}.parquet"
    source = iter(files)
    start = next(source, None)
    if start is None:
        return None
    with folder.writing(name) as temporary:
        count = _write(temporary, _chained(start, source), _group_rows(photos_per_shard))
        sha256 = sha256_of(temporary)
    shards = -(-count // photos_per_shard)
    first_row = sum(part.photos for part in before)
    return ManifestPart(name, count, first_row, sum(part.shards for part in before), shards, sha256)


def _chained(first: ListedFile, rest: Iterator[ListedFile]) -> Iterator[ListedFile]:
    yield first
    yield from rest


def _write(path: Path, files: Iterator[ListedFile], group_rows: int) -> int:
    pq = parquet_module()
    import pyarrow as pa

    schema = pa.schema([("path", pa.string()), ("bytes", pa.int64())])
    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, write_statistics=False) as writer:
        while rows := list(islice(files, group_rows)):
            columns = [[file.place for file in rows], [file.size_bytes for file in rows]]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=group_rows)
            count += len(rows)
    return count


def _group_rows(photos_per_shard: int) -> int:
    """Whole shards, and not so few rows that the table of contents of the file becomes large."""
    return photos_per_shard * -(-LEAST_GROUP // photos_per_shard)


class Manifest:
    """The parts of a manifest, read when they are needed."""

    def __init__(self, folder: ShardFolder, parts: Sequence[ManifestPart], photos_per_shard: int) -> None:
        self.folder, self.parts, self.photos_per_shard = folder, tuple(parts), photos_per_shard

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "parts": self.parts, "photos_per_shard": self.photos_per_shard}

    @property
    def photos(self) -> int:
        """The number of photos."""
        return sum(part.photos for part in self.parts)

    @property
    def shards(self) -> int:
        """The number of shards."""
        return sum(part.shards for part in self.parts)

    def photos_in(self, number: int) -> int:
        """The number of photos of a shard."""
        part = self._part_of(number)
        return min(self.photos_per_shard, part.photos - (number - part.first_shard) * self.photos_per_shard)

    def check(self) -> None:
        """UserError where a part is missing or was changed."""
        for part in self.parts:
            if self.folder.size_bytes(part.file) is None or self.folder.sha256(part.file) != part.sha256:
                raise UserError(
                    f"{self.folder.shown(part.file)} is missing or was changed since it was written; name another "
                    "output"
                )

    def shard(self, number: int) -> ManifestShard:
        """The photos of a shard. UserError where the manifest is damaged."""
        part = self._part_of(number)
        at = (number - part.first_shard) * self.photos_per_shard
        group, offset = divmod(at, _group_rows(self.photos_per_shard))
        rows = self._rows(part, group)[offset : offset + self.photos_in(number)]
        return ManifestShard(number, part.first_row + at, tuple(rows))

    def __iter__(self) -> Iterator[ListedFile]:
        """All photos in the order of their paths, one row group of each part in memory."""
        return heapq.merge(*(self._rows_of(part) for part in self.parts))

    def _part_of(self, number: int) -> ManifestPart:
        return next(part for part in reversed(self.parts) if part.first_shard <= number)

    def _rows_of(self, part: ManifestPart) -> Iterator[ListedFile]:
        for group in range(self._file(part).num_row_groups):
            yield from self._rows(part, group)

    def _rows(self, part: ManifestPart, group: int) -> list[ListedFile]:
        table = self._file(part).read_row_group(group)
        return [ListedFile(*row) for row in zip(*(table[name].to_pylist() for name in ("path", "bytes")))]

    @cached_property
    def _files(self) -> dict[str, pyarrow.parquet.ParquetFile]:
        return {}

    def _file(self, part: ManifestPart) -> pyarrow.parquet.ParquetFile:
        if part.file not in self._files:
            local = self.folder.is_local
            source = self.folder.path(part.file) if local else io.BytesIO(self.folder.read(part.file, "a manifest"))
            self._files[part.file] = parquet_module().ParquetFile(source)
        return self._files[part.file]


@dataclass(frozen=True)
class ManifestChanges:
    """How what is there now differs from a manifest: the number of files, and the first of each kind."""

    removed: int
    resized: int
    added: int
    first: str | None

    def __bool__(self) -> bool:
        return self.removed + self.resized + self.added > 0


def compare(manifest: Iterable[ListedFile], now: Iterable[ListedFile]) -> Iterator[tuple[str, ListedFile]]:
    """("removed" | "resized" | "added", file) for each difference; both are in the order of paths."""
    old, new = iter(manifest), iter(now)
    a, b = next(old, None), next(new, None)
    while a is not None or b is not None:
        if b is None or (a is not None and a.place < b.place):
            assert a is not None
            yield "removed", a
            a = next(old, None)
        elif a is None or b.place < a.place:
            yield "added", b
            b = next(new, None)
        else:
            if a.size_bytes != b.size_bytes:
                yield "resized", b
            a, b = next(old, None), next(new, None)


def changes_of(differences: Iterable[tuple[str, ListedFile]]) -> ManifestChanges:
    """What `compare` yields, counted."""
    counts = dict.fromkeys(("removed", "resized", "added"), 0)
    first = None
    for kind, file in differences:
        counts[kind] += 1
        first = first or file.place
    return ManifestChanges(first=first, **counts)
