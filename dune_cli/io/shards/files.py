"""The files of shards: Parquet tables for vectors and documents, WebDataset tar files for maps.

Equal rows make equal bytes, with one version of pyarrow. Rows are written as they come, so that memory stays bounded.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.io.json_files import json_line
from dune_cli.io.safe_read import MIB
from dune_cli.io.shards.manifest import parquet_module

GROUP_ROWS = 256
GROUP_BYTES = 64 * MIB  # a row group ends at either of these
PARQUET, TAR = "parquet", "tar"
METADATA_KEY = b"dune"
Value = str | int | float | np.ndarray | None


@dataclass(frozen=True)
class ShardRow:
    """A photo's row: what all verbs say of it (`facts`), and its result.

    `columns`: of a Parquet table. `files`: of a tar file, by their endings ("depth.png"). `document`: a JSON object;
    the text in the column `document`, or the file KEY.json. `error`: a sentence, where there is no result.
    """

    number: int
    facts: Mapping[str, Value]
    columns: Mapping[str, Value]
    files: Mapping[str, bytes]
    document: Mapping[str, Any] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Column:
    """A column of a table. kind: "string", an integer or float type of Arrow, or such a type of a list's items, as
    "list:float32"; arrays become lists in C order."""

    name: str
    kind: str


FACTS = (
    Column("row", "int64"),
    Column("path", "string"),
    Column("bytes", "int64"),
    Column("sha256", "string"),
    Column("width", "int32"),
    Column("height", "int32"),
)
ERROR = Column("error", "string")


class ParquetShard:
    """A table that is written row by row: FACTS, the verb's own columns, and ERROR."""

    def __init__(self, path: Path, columns: Sequence[Column], metadata: Mapping[str, Any]) -> None:
        import pyarrow as pa

        self._pa = pa
        self._columns = (*FACTS, *columns, ERROR)
        fields = [(column.name, _arrow_type(pa, column.kind)) for column in self._columns]
        self._schema = pa.schema(fields, metadata={METADATA_KEY: json_line(metadata)})
        self._writer = parquet_module().ParquetWriter(
            path, self._schema, compression="zstd", use_dictionary=False, write_statistics=False
        )
        self._rows: list[dict[str, Value]] = []
        self._bytes = 0

    def add(self, row: ShardRow) -> None:
        """Adds a row."""
        document = {} if row.document is None else {"document": json_line(row.document)}
        values = {"row": row.number, **row.facts, **row.columns, **document, "error": row.error}
        self._rows.append(values)
        self._bytes += sum(value.nbytes for value in values.values() if isinstance(value, np.ndarray))
        if len(self._rows) == GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._write()

    def close(self) -> None:
        """Writes the end of the file."""
        self._write()
        self._writer.close()

    def abandon(self) -> None:
        """Closes a file that is not whole."""
        self._rows = []
        self._writer.close()

    def _write(self) -> None:
        if not self._rows:
            return
        arrays = [self._array(column) for column in self._columns]
        table = self._pa.Table.from_arrays(arrays, schema=self._schema)
        self._writer.write_table(table, row_group_size=len(self._rows))
        self._rows, self._bytes = [], 0
        del arrays, table
        self._pa.default_memory_pool().release_unused()  # Arrow's allocator would keep some 150 MB for the next group

    def _array(self, column: Column) -> Any:
        pa = self._pa
        values = [row.get(column.name) for row in self._rows]
        _, is_list, item = column.kind.rpartition("list:")
        if not is_list:
            return pa.array(values, _arrow_type(pa, column.kind))
        flat = [np.zeros(0, item) if value is None else np.asarray(value, item).ravel() for value in values]
        offsets = np.cumsum([0, *map(len, flat)], dtype=np.int32)
        mask = pa.array([value is None for value in values])
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(flat)), mask=mask)


def _arrow_type(pa: Any, kind: str) -> Any:
    _, is_list, item = kind.rpartition("list:")
    return pa.list_(getattr(pa, item)()) if is_list else getattr(pa, kind)()


class TarShard:
    """A WebDataset: for each row KEY.ENDING of its files and KEY.json, where KEY is its number in 12 digits.

    Headers are fixed (USTAR, owner 0, time 0), so that the bytes depend on the content alone.
    """

    def __init__(self, path: Path, columns: Sequence[Column], metadata: Mapping[str, Any]) -> None:
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(self, row: ShardRow) -> None:
        """Adds a row."""
        document = {"row": row.number, **row.facts, "error": row.error, "result": row.document}
        files = {**row.files, "json": json_line(document).encode() + b"\n"}
        for ending, content in files.items():
            member = tarfile.TarInfo(f"{row.number:012d}.{ending}")
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        """Writes the end of the file."""
        self._tar.close()

    abandon = close


KINDS = {PARQUET: ParquetShard, TAR: TarShard}
