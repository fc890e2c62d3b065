"""The folder of `dune index`: an index that is searched or renewed, and what an unfinished run has left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dune_cli.errors import UserError
from dune_cli.io.photo_index import (
    IndexedFile,
    IndexEncoder,
    IndexEntry,
    IndexRow,
    PendingEntries,
    PhotoIndex,
    open_index,
    write_index,
)
from dune_cli.sfm.vector_search import most_similar
from fuzz.harness import Sample

ENCODER = IndexEncoder("dune-mini", "dune-mini", "a" * 64, "Apache-2.0", "mean", 224, 8)


def samples(folder: Path) -> Sequence[Sample]:
    vectors = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    film = IndexedFile("../film.mp4", 10, 123, "f" * 64, 2.0)
    entries = [
        IndexEntry(file, (IndexRow(file),), vectors[i : i + 1])
        for i, file in enumerate(IndexedFile(f"../photos/{i}.jpg", 10, 123, f"{i:064x}") for i in range(2))
    ]
    entries.append(IndexEntry(film, tuple(IndexRow(film, frame, frame / 2) for frame in range(3)), vectors[2:]))
    write_index(folder, ENCODER, entries, [], {"seconds": {}})
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    PendingEntries(folder, ENCODER).add(entries)
    part = next((folder / "pending").iterdir())
    kinds = {name: "bytes" for name in files if name.endswith(".npy")}

    def searched(case: Path) -> PhotoIndex:
        index = open_index(case)
        query = np.zeros((1, index.vectors.shape[1]), np.float32)
        query[0, 0] = 1
        rows, cosines = most_similar(query, index.vectors, 3)
        assert rows.shape == (1, min(3, len(index.rows))) and np.isfinite(cosines).all()
        return index

    def renewed(case: Path) -> PhotoIndex:
        index = open_index(case)
        index.check_hashes()
        return index

    def continued(case: Path) -> list[IndexEntry]:
        found = PendingEntries(case, ENCODER).read()
        if not found:
            raise UserError("it is computed again")
        return found

    def is_index(index: PhotoIndex) -> None:
        assert len(index.rows) == len(index.vectors) == sum(len(entry.rows) for entry in index.entries())
        assert all(row.file.size_bytes >= 0 and row.file.path for row in index.rows)
        assert all((row.frame is None) == (row.file.fps is None) for row in index.rows)

    def is_unchanged(index: PhotoIndex) -> None:
        is_index(index)
        assert np.array_equal(index.vectors, vectors)
        assert [row for entry in index.entries() for row in entry.rows] == [r for entry in entries for r in entry.rows]

    def are_entries(found: list[IndexEntry]) -> None:
        assert [entry.rows for entry in found] == [entry.rows for entry in entries]
        assert np.array_equal(np.concatenate([entry.vectors for entry in found]), vectors)

    return [
        Sample(files, searched, is_index, kinds=kinds),
        Sample(files, renewed, is_unchanged, [name for name in files if name != "index.json"], kinds),
        Sample({f"pending/{part.name}": part.read_bytes()}, continued, are_entries),
    ]
