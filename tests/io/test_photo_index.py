"""The folder of an index: written and read, damaged, locked, and what an unfinished run has left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dune_cli.errors import JobFailed, UserError
from dune_cli.io import photo_index
from dune_cli.io.photo_index import (
    IndexedFile,
    IndexEncoder,
    IndexEntry,
    IndexRow,
    PendingEntries,
    SkippedFile,
    check_index_folder,
    located,
    lock,
    open_index,
    relative_path,
    write_index,
)

ENCODER = IndexEncoder("dune-mini", "dune-mini", "a" * 64, "Apache-2.0", "mean", 224, 8)


def entries() -> list[IndexEntry]:
    """Two photos and a video of three frames."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((5, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    photos = [IndexedFile(f"../photos/{name}", 10, 123, f"{i:064x}") for i, name in enumerate(["a.jpg", "b\udcff.jpg"])]
    film = IndexedFile("../c.mp4", 10, 123, "f" * 64, 2.0)
    rows = tuple(IndexRow(film, frame, frame / 2) for frame in range(3))
    return [
        *(IndexEntry(file, (IndexRow(file),), vectors[i : i + 1]) for i, file in enumerate(photos)),
        IndexEntry(film, rows, vectors[2:]),
    ]


def write(folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return write_index(folder, ENCODER, entries(), [SkippedFile("../d.jpg", "it is empty")], {"seconds": {}})


def same(left: list[IndexEntry], right: list[IndexEntry]) -> bool:
    return len(left) == len(right) and all(
        (a.file, a.rows) == (b.file, b.rows) and np.array_equal(a.vectors, b.vectors) for a, b in zip(left, right)
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    header = write(tmp_path / "index")
    index = open_index(tmp_path / "index")
    index.check_hashes()
    assert same(index.entries(), entries())
    assert index.encoder == ENCODER and (header["count"], header["files"]) == (5, 3)
    assert header["skipped"] == [{"path": "../d.jpg", "reason": "it is empty"}]
    assert isinstance(index.vectors, np.memmap) and not index.vectors.flags.writeable
    loaded = np.load(tmp_path / "index" / header["vectors"]["file"], allow_pickle=False)
    np.testing.assert_array_equal(loaded, index.vectors)


def test_equal_entries_make_equal_files_and_old_ones_go(tmp_path: Path) -> None:
    write(tmp_path / "one")
    (tmp_path / "one" / f"vectors-{'0' * 16}.npy").write_bytes(b"old")
    (tmp_path / "one" / ".dune-left.npy").write_bytes(b"half")
    (tmp_path / "one" / "notes.txt").write_bytes(b"mine")
    write(tmp_path / "one")
    write(tmp_path / "two")
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.suffix != ".txt"}
        for name in ("one", "two")
    ]
    assert contents[0] == contents[1] and len(contents[0]) == 3
    assert (tmp_path / "one" / "notes.txt").exists()


def test_paths_are_relative_to_the_folder_and_move_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "index").mkdir(parents=True)
    path = relative_path(old / "index", old / "photos" / "a.jpg")
    assert path == "../photos/a.jpg"
    shutil.move(old, new)
    assert located(new / "index", path) == new / "photos" / "a.jpg"
    monkeypatch.chdir(new)
    assert located(Path("index"), path) == Path("photos/a.jpg")


def _header(folder: Path, **changes: Any) -> None:
    header = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(header | changes))


def _cut(folder: Path, kind: str) -> None:
    path = next(folder.glob(f"{kind}-*"))
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda f: _cut(f, "vectors"), r"has \d+ bytes where \d+ belong"),
        (lambda f: _cut(f, "photos"), "lines where index.json counts 5"),
        (lambda f: _header(f, count=2**31), "does not hold 2147483648 x 8"),
        (lambda f: _header(f, count=2**40), "allowed: from 1 to"),
        (lambda f: _header(f, count=0), "allowed: from 1 to"),
        (lambda f: _header(f, dimension=16), "does not hold 5 x 16"),
        (lambda f: _header(f, schema="dune.scene/1"), "its schema must be dune.index/1"),
        (lambda f: _header(f, vectors={"file": "/dev/zero", "sha256": "a" * 64}), "names no vectors file"),
        (lambda f: _header(f, vectors={"file": "../index.json", "sha256": "a" * 64}), "names no vectors file"),
        (lambda f: next(f.glob("vectors-*")).unlink(), "no such file"),
        (lambda f: next(f.glob("vectors-*")).write_bytes(b"\x93NUMPY\x01\x00"), "no NPY file"),
        (lambda f: (f / "index.json").write_text("{"), "not a JSON file"),
    ],
)
def test_a_damaged_index_is_refused_in_one_sentence(tmp_path: Path, damage: Any, said: str) -> None:
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=said) as error:
        open_index(tmp_path)
    assert "\n" not in str(error.value)


def test_changed_numbers_are_found_by_the_hash(tmp_path: Path) -> None:
    write(tmp_path)
    path = next(tmp_path.glob("vectors-*"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"has changed since it was written; make it anew: .*--overwrite"):
        open_index(tmp_path).check_hashes()


def test_a_folder_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no index folder"):
        open_index(tmp_path / "none")
    with pytest.raises(UserError, match="holds no index"):
        open_index(tmp_path)
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"holds files \(holiday.jpg, ...\) and no index"):
        check_index_folder(tmp_path)
    assert check_index_folder(tmp_path / "new") == tmp_path / "new"


def test_an_index_that_is_replaced_while_it_is_opened_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    real, calls = photo_index._map_vectors, []

    def replaced(folder: Path, path: Path, *rest: int) -> np.ndarray:
        calls.append(path)
        if len(calls) == 1:
            _header(folder, files=4)
            raise UserError("no such file")
        return real(folder, path, *rest)

    monkeypatch.setattr(photo_index, "_map_vectors", replaced)
    assert len(open_index(tmp_path).rows) == 5 and len(calls) == 2


def test_only_one_process_writes(tmp_path: Path) -> None:
    refused = pytest.raises(JobFailed, match="another process is writing the index")
    with lock(tmp_path / "index"), refused, lock(tmp_path / "index"):
        raise AssertionError
    with lock(tmp_path / "index"):
        pass


def test_pending_entries_are_read_again_in_order(tmp_path: Path) -> None:
    first, second, film = entries()
    pending = PendingEntries(tmp_path, ENCODER)
    pending.add([first, film])
    pending.add([])
    pending.add([second])
    again = PendingEntries(tmp_path, ENCODER)
    assert same(again.read(), [first, film, second])
    again.add([first])
    assert len(list((tmp_path / "pending").iterdir())) == 3
    next(iter(sorted((tmp_path / "pending").iterdir()))).write_bytes(b"damaged")
    assert same(PendingEntries(tmp_path, ENCODER).read(), [second, first])
    other = IndexEncoder("dune-mini", "dune-mini", "b" * 64, "Apache-2.0", "mean", 224, 8)
    assert PendingEntries(tmp_path, other).read() == []
    pending.clear()
    assert not (tmp_path / "pending").exists()
