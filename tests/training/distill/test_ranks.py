"""Several ranks (gloo), once by torchrun: the losses of one process, sharded students, other rank counts on resume."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support.forked_ranks import Ranks
from support.teacher_files import NAMES
from support.training_words import words

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def forks() -> Iterator[Ranks]:
    with Ranks() as ranks:
        yield ranks


def torchrun(ranks: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """`dune ARGUMENTS` on `ranks` processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    where = ["--master-addr", "127.0.0.1", "--master-port", str(port), "-m", "dune_cli.cli"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*start, *where, *arguments], capture_output=True, text=True, timeout=550, env=environment, check=False
    )


def losses(output: Path) -> dict[int, dict[str, float]]:
    entries = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return {e["step"]: {k: v for k, v in e.items() if "/" in k or k == "loss"} for e in entries}


def assert_same_losses(one: Path, other: Path) -> None:
    a, b = losses(one), losses(other)
    assert a.keys() == b.keys() and a
    for step in a:
        assert b[step] == pytest.approx(a[step], abs=1e-5), step


@pytest.mark.parametrize("sharing", ["none", "lowest_loss", "own_data", "own+generic_data"])
def test_two_processes_are_one(
    sharing: str, distill, forks: Ranks, teachers: str, photos: Path, tmp_path: Path
) -> None:
    """The first by torchrun."""
    run = torchrun if sharing == "none" else forks.run
    data = [f"{name}={photos}" for name in NAMES]
    arguments = ["--sharing", sharing, "--steps", "4"]
    assert distill(teachers, data, tmp_path / "one", *arguments).exit_code == 0
    result = run(2, words(teachers, data, tmp_path / "two", *arguments))
    assert result.returncode == 0, result.stderr[-2000:]
    assert_same_losses(tmp_path / "one", tmp_path / "two")
    assert result.stdout.count("student.safetensors\n") == 1  # one process speaks


def test_sharded_students_and_other_rank_counts(
    distill, forks: Ranks, teachers: str, photos: Path, tmp_path: Path
) -> None:
    arguments = ["--steps", "4", "--checkpoint-minutes", "0"]
    assert distill(teachers, photos, tmp_path / "one", *arguments).exit_code == 0
    result = forks.run(2, words(teachers, photos, tmp_path / "shards", *arguments, "--fsdp"))
    assert result.returncode == 0, result.stderr[-2000:]
    assert_same_losses(tmp_path / "one", tmp_path / "shards")
    one, shards = (load_file(tmp_path / name / "student.safetensors") for name in ("one", "shards"))
    assert one.keys() == shards.keys()
    for key in one:
        torch.testing.assert_close(shards[key], one[key], atol=1e-4, rtol=0, msg=key)

    # the sharded run's next to last checkpoint goes on in one process
    log = tmp_path / "shards" / "log.jsonl"
    for path in (tmp_path / "shards" / "checkpoints" / "step-00000004").iterdir():
        path.unlink()
    (tmp_path / "shards" / "checkpoints" / "step-00000004").rmdir()
    log.write_text("".join(line + "\n" for line in log.read_text().splitlines()[:3]))
    result = distill(teachers, photos, tmp_path / "shards", *arguments)
    assert result.exit_code == 0, result.output
    assert "resuming from step-00000003, 1 steps left" in result.stderr
    assert_same_losses(tmp_path / "one", tmp_path / "shards")


def test_a_cache_filled_by_two(distill, forks: Ranks, teachers: str, photos: Path, tmp_path: Path) -> None:
    arguments = ["--cache", str(tmp_path / "cache"), "--crops", "3"]
    result = forks.run(2, words(teachers, photos, tmp_path / "two", *arguments))
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2
    assert distill(teachers, photos, tmp_path / "one", *arguments).exit_code == 0
    assert_same_losses(tmp_path / "one", tmp_path / "two")


def test_a_batch_that_the_processes_cannot_share(forks: Ranks, teachers: str, photos: Path, tmp_path: Path) -> None:
    result = forks.run(2, words(teachers, photos, tmp_path / "run", "--batch-size", "5"))
    assert result.returncode != 0
    assert "dune: --batch-size 5 must be a multiple of the 2 processes times --accumulate 1" in result.stderr
