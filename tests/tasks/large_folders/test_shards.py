"""Runs in shards: killed and gone on with by another number of processes, damaged, extended, in an object store."""

from __future__ import annotations

import json
import os
from pathlib import Path

import fsspec
import pytest

from dune_cli.errors import JobFailed, UserError
from dune_cli.tasks.large_folders.ranks import Ranks
from dune_cli.tasks.large_folders.record import EXTEND, KEEP
from dune_cli.tasks.large_folders.shards import ShardJobs, ShardTask, summarise
from support.shard_verbs import Means, shard_bytes, shard_jobs, write_photos

pytest.importorskip("pyarrow")


ALONE = Ranks()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", range(14))


def _work(jobs: ShardJobs, ranks: Ranks = ALONE) -> int:
    """The number of photos that were computed."""
    work = jobs()
    return sum(step.photos for task in ranks.tasks(jobs.run.manifest(jobs.folder).shards) for step in _of(work, task))


def _of(work: object, task: ShardTask) -> list:
    return [step for step in work(task) if step.computed]  # type: ignore[operator]


def _killed(jobs: ShardJobs) -> None:
    child = os.fork()
    if child == 0:
        _work(jobs)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_killed_runs_go_on_with_any_number_of_processes(kind: str, photos: Path, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole", tmp_path / "out"
    jobs = shard_jobs(photos, whole, Means(kind, 2))
    assert _work(jobs) == 14
    assert summarise(jobs)["photos"] == 14
    for kill_after in (4, 3, 2):  # in another shard each time
        _killed(shard_jobs(photos, output, Means(kind, 2, kill_after=kill_after)))
    jobs = shard_jobs(photos, output, Means(kind, 2))
    with pytest.raises(JobFailed, match=r"shards of .* are not done"):
        summarise(jobs)
    done = len(list((output / "shards").glob("means-*.json")))
    assert 0 < done < 5
    (tmp_path / "out/shards/.dune-left.tar").touch()  # as a killed worker leaves it
    assert _work(jobs, Ranks(1, 2)) == 14 - sum(json.loads(p.read_text())["photos"] for p in _facts(output, done))
    assert _work(jobs, Ranks(0, 2)) == 0
    summarise(jobs)
    assert shard_bytes(output) == shard_bytes(whole)


def _facts(output: Path, count: int) -> list[Path]:
    return sorted((output / "shards").glob("means-*.json"), key=lambda path: path.stat().st_mtime_ns)[:count]


def test_every_process_begins_with_its_own_and_helps_the_others() -> None:
    orders = [Ranks(rank, 3).tasks(7) for rank in range(3)]
    assert [[task.number for task in order if task.own] for order in orders] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [task.number for task in orders[1]] == [1, 4, 5, 2, 6, 3, 0]
    assert [task.number for task in Ranks(1, 3).tasks(7, helps=False)] == [1, 4]
    assert all(sorted(task.number for task in order) == list(range(7)) for order in orders)


def test_damaged_shards_are_computed_again(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = shard_jobs(photos, tmp_path / "out", Means())
    _work(jobs)
    before = shard_bytes(tmp_path / "out")
    shards = sorted((tmp_path / "out" / "shards").glob("*.parquet"))
    content = bytearray(shards[1].read_bytes())
    content[len(content) // 2] ^= 1
    shards[1].write_bytes(content)
    shards[2].write_bytes(shards[2].read_bytes()[:-1])
    shards[3].with_suffix(".json").write_text("{")
    trusting = shard_jobs(photos, tmp_path / "out", Means(), verify=False)
    assert _work(trusting) == 6 and "checksum" not in capsys.readouterr().err  # a size and a JSON are seen at once
    assert _work(jobs) == 3
    assert "means-00000001.parquet is damaged (its checksum does not fit)" in capsys.readouterr().err
    assert shard_bytes(tmp_path / "out") == before


def test_another_process_at_a_shard_is_left_alone(photos: Path, tmp_path: Path) -> None:
    jobs = shard_jobs(photos, tmp_path / "out", Means())
    with jobs.folder.claimed(jobs.names(1)[0]) as free:
        assert free and _work(jobs) == 11
    assert _work(jobs) == 3


def test_changed_folders(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    jobs = shard_jobs(photos, output, Means())
    _work(jobs)
    summarise(jobs)
    before = shard_bytes(output)
    write_photos(photos, [20, 21])
    with pytest.raises(UserError, match=r"2 new since the manifest .*020.png.*--manifest extend"):
        shard_jobs(photos, output, Means())
    assert _work(shard_jobs(photos, output, Means(), KEEP)) == 0
    gone = photos / "part1" / "003.png"
    content = gone.read_bytes()
    gone.unlink()
    extended = shard_jobs(photos, output, Means(), EXTEND)
    assert "1 gone" in capsys.readouterr().err
    assert _work(extended) == 2 and summarise(extended)["photos"] == 16
    after = shard_bytes(output)
    assert all(after[name] == content for name, content in before.items() if name.startswith("shards/"))
    gone.write_bytes(content + b"x")
    with pytest.raises(UserError, match="1 of another size") as caught:
        shard_jobs(photos, output, Means(), EXTEND)
    assert "--manifest extend" not in str(caught.value)


def test_other_settings_weights_and_folders_are_refused(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    _work(shard_jobs(photos, output, Means()))
    with pytest.raises(UserError, match="batch_size 1, now 2"):
        shard_jobs(photos, output, Means(batch_size=2))
    (output / "shards" / "means-00000002.json").unlink()
    with pytest.raises(UserError, match="begun with the weights means w1, and these are means w2"):
        _work(shard_jobs(photos, output, Means(weights="w2")))
    with pytest.raises(UserError, match="holds files of something else"):
        shard_jobs(photos, photos, Means())
    (output / "run.json").unlink()
    with pytest.raises(UserError, match="holds files of something else"):  # shards of nobody knows what
        shard_jobs(photos, output, Means())
    stopped = tmp_path / "stopped" / "manifest"
    stopped.mkdir(parents=True)
    (stopped / ".dune-0.parquet").touch()
    assert _work(shard_jobs(photos, stopped.parent, Means())) == 14
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "clip.mp4").touch()
    with pytest.raises(UserError, match=r"holds no photos \(1 videos\)"):
        shard_jobs(tmp_path / "none", tmp_path / "new", Means())


def test_shards_with_errors_are_done_again_when_asked(photos: Path, tmp_path: Path) -> None:
    broken = photos / "part0" / "004.png"
    content = broken.read_bytes()
    broken.write_bytes(b"x" * len(content))
    jobs = shard_jobs(photos, tmp_path / "out", Means())
    _work(jobs)
    assert summarise(jobs)["errors"] == 1 and _work(jobs) == 0
    broken.write_bytes(content)
    assert _work(shard_jobs(photos, tmp_path / "out", Means(), redo_errors=True)) == 3
    assert summarise(jobs)["errors"] == 0


def test_object_stores_take_photos_and_shards(photos: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(photos), "/shards-test/photos", recursive=True)
    output = "memory://shards-test/out"
    jobs = shard_jobs("memory://shards-test/photos", output, Means())  # type: ignore[arg-type]
    assert _work(jobs) == 14 and _work(jobs) == 0
    summarise(jobs)
    local = shard_jobs(photos, tmp_path / "out", Means())
    _work(local)
    import pyarrow.parquet as pq

    for number in range(5):
        name, _ = jobs.names(number)
        there = pq.read_table(store.open(f"/shards-test/out/{name}"))
        here = pq.read_table(tmp_path / "out" / name)
        assert there.drop(["path"]) == here.drop(["path"])
        assert all(path.startswith("memory:///shards-test/photos/part") for path in there["path"].to_pylist())
    store.rm("/shards-test", recursive=True)
