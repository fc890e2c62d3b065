"""`dune eval mapping` on a made-up set."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dune_cli.evaluation import mapping as benchmark
from support.posed_sets import VIEWS, write_set

Dune = Callable[..., subprocess.CompletedProcess[str]]


def test_a_row_a_method_with_errors_and_costs(dune: Dune, tmp_path: Path) -> None:
    folder, output = write_set(tmp_path) / "made", tmp_path / "table.json"
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    done = dune("eval", "mapping", folder, "--threads", "1", "-o", output)
    assert done.returncode == 0, done.stderr
    assert not processors or os.sched_getaffinity(0) == processors
    assert [line.split("|")[2].strip() for line in done.stdout.splitlines()[2:]] == ["pycolmap", "dune"]
    result = json.loads(output.read_text())
    assert result["schema"] == "dune.eval-mapping/1" and result["threads"] == 1
    for row in result["rows"]:
        assert (row["registered"], row["photos"], row["reason"]) == (VIEWS, VIEWS, None)
        assert row["rotation_deg"] < 1 and row["centre_share"] < 0.05 and row["reprojection_error_px"] < 1
        assert row["points"] > 30 and row["observations"] >= 2 * row["points"]
        assert row["processor_seconds"] > 0.2 and row["memory_bytes"] > 5e7
    assert [row["apart_deg"] is None for row in result["rows"]] == [True, False]


def test_a_method_that_fails_is_a_row_with_its_reason(tmp_path: Path) -> None:
    given = benchmark.PhotoFolder(tmp_path, tuple(tmp_path / f"{i}.png" for i in range(3)), {})
    rows = list(benchmark.map_folder(given, ["--matcher", "sift"], 1, 0))  # photos that do not exist
    assert [(row.method, row.registered, row.points) for row in rows] == [("pycolmap", 0, 0), ("dune", 0, 0)]
    assert all(row.reason for row in rows)


def test_photos_that_are_no_set(dune: Dune, tmp_path: Path) -> None:
    done = dune("eval", "mapping", tmp_path)
    assert done.returncode == 2 and "holds no images" in done.stderr
    photos = sorted((write_set(tmp_path) / "made").glob("*.png"))
    for photo in photos[2:]:
        photo.unlink()
    done = dune("eval", "mapping", photos[0].parent)
    assert (
        done.returncode == 2
        and "needs three photos or more with different names, to be mapped; it has 2" in done.stderr
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [("--threads", "0"), ("--matcher", "shift")])
def test_options_that_cannot_be(dune: Dune, tmp_path: Path, words: tuple[str, str]) -> None:
    assert dune("eval", "mapping", tmp_path, *words).returncode == 2
