"""`dune eval multiview` and `dune eval depthmaps` on a made-up set."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.posed_sets import write_set

Dune = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.usefixtures("quick_sift", "quick_dense")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("sets"), depth=True)


@pytest.mark.slow
def test_multiview_table_and_json(dune: Dune, root: Path, tmp_path: Path) -> None:
    output = tmp_path / "table.json"
    done = dune("eval", "multiview", root, "--matcher", "sift", "-o", output)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("| set ") and lines[1].startswith("| -")
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["sift", "pycolmap-sift"]
    result = json.loads(output.read_text())
    assert result["schema"] == "dune.eval-multiview/1"
    for row in result["rows"]:
        assert (row["registered"], row["photos"], row["completeness"]) == (5, 5, 1)
        assert row["auc10"] > 0.9
        assert row["scale_error"] < 0.05
        assert row["seconds"] > 0 and row["processor_seconds"] > 0
    assert dune("eval", "multiview", root, "-o", output).returncode == 2


@pytest.mark.slow
def test_depthmaps_table_and_json(dune: Dune, root: Path) -> None:
    done = dune("eval", "depthmaps", root, "--matcher", "sift", "--quality", "low", "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["method"] for row in result["rows"]] == ["median depth", "nearest sparse point", "dense low"]
    assert len(result["photos"]) == 15
    assert result["matcher"] == "sift"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["multiview", "ROOT", "--matcher", "pointmap"], "pointmap needs a two-view model"),
        (["multiview", "ROOT", "--matcher", "shift"], "unknown matcher 'shift'"),
        (["multiview", "ROOT", "--matcher", "sift", "--model", "x.pth"], "are for the matchers dune and mast3r"),
        (["multiview", "ROOT", "--pairs", "some"], "--pairs 'some' is unknown here"),
        (["multiview", "ROOT", "--set", "other"], "unknown set other; this folder has: made"),
        (["multiview", "absent"], "is no folder"),
        (["depthmaps", "ROOT", "--quality", "best"], "unknown quality best; allowed: low, medium, high"),
        (["depthmaps", "ROOT", "--matcher", "mast3r"], "needs a two-view model"),
        (["depthmaps", "absent"], "is no folder"),
    ],
)
def test_bad_words_are_one_sentence(dune: Dune, root: Path, arguments: list[str], message: str) -> None:
    done = dune("eval", *[root if word == "ROOT" else word for word in arguments])
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_no_depth_is_said(dune: Dune, tmp_path: Path) -> None:
    done = dune("eval", "depthmaps", write_set(tmp_path), "--matcher", "sift")
    assert done.returncode == 2
    assert "has measured depth" in done.stderr
