"""A shard's photos through a network: order, passes, neighbours, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dune_cli.io.shards.files import ShardRow
from dune_cli.io.shards.listing import ListedFile, list_photos
from dune_cli.io.shards.manifest import ManifestShard
from dune_cli.tasks.large_folders import pipeline as module
from dune_cli.tasks.large_folders.pipeline import ShardPipeline
from support.shard_verbs import SIZES, Means, MeansNetwork, write_photos


def _files(folder: Path) -> tuple[ListedFile, ...]:
    from collections import Counter

    return tuple(list_photos([str(folder)], Counter()))


def _rows(network: MeansNetwork, files: tuple[ListedFile, ...], threads: int = 3) -> list[ShardRow]:
    rows: list[ShardRow] = []
    steps = ShardPipeline(network, network.verb.batch_size, threads).run(ManifestShard(5, 100, files), rows.append)
    errors = list(steps)
    assert [row.error for row in rows] == errors
    return rows


def test_rows_are_in_the_order_of_the_photos(tmp_path: Path) -> None:
    files = _files(write_photos(tmp_path, range(30)))
    for batch_size in (1, 4):
        rows = _rows(MeansNetwork(Means(batch_size=batch_size)), files)
        assert [row.number for row in rows] == list(range(100, 130))
        assert [row.facts["path"] for row in rows] == [file.place for file in files]
        assert all(row.facts["width"] == SIZES[int(Path(str(row.facts["path"])).stem) % 4][0] for row in rows)


def test_photos_of_one_size_share_passes_that_are_filled_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = _files(write_photos(tmp_path, range(22)))
    network = MeansNetwork(Means(batch_size=3))
    rows = _rows(network, files)
    assert sum(count for _, count in network.passes) == 22 and {count for _, count in network.passes} <= {1, 2, 3}
    assert len(network.passes) == 4 + 2 + 2  # 11, 6 and 5 photos of each size
    means = {row.facts["path"]: row.columns["mean"] for row in rows}
    alone = _rows(MeansNetwork(Means()), files)
    assert all(np.array_equal(means[row.facts["path"]], row.columns["mean"]) for row in alone)
    monkeypatch.setattr(module, "WAIT_BATCHES", 1)  # a photo waits for few others: more passes, the same rows
    sooner = MeansNetwork(Means(batch_size=3))
    assert len(_rows(sooner, files)) == 22 and len(sooner.passes) >= len(network.passes)


def test_photos_without_a_result_are_rows(tmp_path: Path) -> None:
    write_photos(tmp_path, range(6))
    (tmp_path / "part0" / "000.png").write_bytes(b"broken")
    (tmp_path / "part0" / "empty.jpg").touch()
    files = _files(tmp_path)
    (tmp_path / "part1" / "003.png").unlink()
    with (tmp_path / "part1" / "005.png").open("ab") as file:
        file.write(b"more")
    rows = {Path(str(row.facts["path"])).name: row for row in _rows(MeansNetwork(Means(batch_size=2)), files)}
    errors = {name: row.error for name, row in rows.items() if row.error}
    assert set(errors) == {"000.png", "003.png", "005.png", "empty.jpg"}
    assert "not a picture" in errors["000.png"] and "is empty" in errors["empty.jpg"]
    assert "no such file" in errors["003.png"] and "when the manifest was made" in errors["005.png"]
    assert all(not row.columns for row in rows.values() if row.error)


def test_an_error_of_a_pass_is_that_of_its_photo(tmp_path: Path) -> None:
    files = _files(write_photos(tmp_path, range(0, 16, 2)))
    means = sorted(float(np.mean(row.columns["mean"])) for row in _rows(MeansNetwork(Means()), files))
    for batch_size in (1, 4):
        rows = _rows(MeansNetwork(Means(batch_size=batch_size, dark=means[0] + 1e-6)), files)
        assert [row.error for row in rows if row.error] == ["it is too dark"]


def test_what_is_no_error_of_a_photo_ends_the_run(tmp_path: Path) -> None:
    files = _files(write_photos(tmp_path, range(12)))

    def full(row: ShardRow) -> None:
        if row.number == 104:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        list(ShardPipeline(MeansNetwork(Means()), 1, 2).run(ManifestShard(0, 100, files), full))
