"""Shards as other tools read them, and equal bytes for equal rows."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest

from dune_cli.io.shards.files import Column, ParquetShard, ShardRow, TarShard
from dune_cli.io.shards.folder import ShardFolder
from dune_cli.provenance import sha256_of

COLUMNS = [Column("cls", "list:float32"), Column("people", "int32"), Column("document", "string")]


def _rows(count: int) -> list[ShardRow]:
    rows = []
    for number in range(count):
        facts = {"path": f"/p/ä{number}.jpg", "bytes": 5, "sha256": "ab", "width": 4, "height": 3}
        columns = {"cls": np.full((2, 2), number + 0.5, np.float32), "people": number}
        rows.append(ShardRow(number, facts, columns, {"depth.png": b"png%d" % number}, {"k": np.float32(0.1)}))
    return [*rows, ShardRow(count, {"path": "/p/broken.jpg", "bytes": 1}, {}, {}, None, "it is broken")]


@pytest.mark.parametrize("kind", [ParquetShard, TarShard])
def test_equal_rows_make_equal_bytes(kind: type, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for name in ("one", "two"):
        shard = kind(tmp_path / name, COLUMNS, {"verb": "test"})
        for row in _rows(300):
            shard.add(row)
        shard.close()
    assert sha256_of(tmp_path / "one") == sha256_of(tmp_path / "two")


def test_parquet_is_read_by_pyarrow(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    shard = ParquetShard(tmp_path / "a.parquet", COLUMNS, {"verb": "test"})
    for row in _rows(300):
        shard.add(row)
    shard.close()
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["row"].to_pylist() == list(range(301))
    assert json.loads(table.schema.metadata[b"dune"]) == {"verb": "test"}
    assert table["cls"][299].as_py() == [299.5] * 4 and table["path"][7].as_py() == "/p/ä7.jpg"
    assert table["document"][0].as_py() == '{"k": 0.1}'
    last = {name: table[name][300].as_py() for name in table.column_names}
    assert last == {
        **dict.fromkeys(("sha256", "width", "height", "cls", "people", "document")),
        "row": 300,
        "path": "/p/broken.jpg",
        "bytes": 1,
        "error": "it is broken",
    }


def test_tar_is_a_webdataset(tmp_path: Path) -> None:
    shard = TarShard(tmp_path / "a.tar", (), {})
    for row in _rows(2):
        shard.add(row)
    shard.close()
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        assert {member.mtime for member in tar} == {0}
    assert list(members) == [
        "000000000000.depth.png",
        "000000000000.json",
        "000000000001.depth.png",
        "000000000001.json",
        "000000000002.json",
    ]
    assert members["000000000001.depth.png"] == b"png1"
    assert json.loads(members["000000000001.json"])["result"] == {"k": 0.1}
    assert json.loads(members["000000000002.json"])["error"] == "it is broken"


@pytest.mark.parametrize("place", ["local", "memory://shards-out/deep"])
def test_a_file_is_whole_or_not_there(place: str, tmp_path: Path) -> None:
    folder = ShardFolder(str(tmp_path / place) if place == "local" else place)
    assert not folder.names() and folder.size_bytes("a/b.txt") is None
    with pytest.raises(RuntimeError), folder.writing("a/b.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert folder.size_bytes("a/b.txt") is None
    folder.write_text("a/b.txt", "whole")
    assert folder.read("a/b.txt", "a text") == b"whole" and folder.size_bytes("a/b.txt") == 5
    assert folder.sha256("a/b.txt") == hashlib.sha256(b"whole").hexdigest()
    assert folder.names() == {"a"}
    with folder.claimed("a/b.txt") as free, ShardFolder(folder.place).claimed("a/b.txt") as also:
        assert free and also == (not folder.is_local)
    with folder.claimed("a/b.txt") as free:
        assert free
    if not folder.is_local:
        fsspec.filesystem("memory").rm("/shards-out", recursive=True)
