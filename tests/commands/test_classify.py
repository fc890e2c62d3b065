"""`dune classify`: names with scores on stdout, JSON, wrong files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from click.testing import CliRunner

from dune_cli.cli import main
from support.dinov2_head_files import write_small_set

HEAD = "dinov2_vits14_linear_head.pth"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_set(tmp_path_factory.mktemp("head-weights"))


def test_five_lines_a_photo(weights: Path, example_photos: Path, dune: Callable[..., CompletedProcess[str]]) -> None:
    done = dune("classify", example_photos / "chelsea.png", "--model", weights / HEAD, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    found = [re.fullmatch(r"(0\.\d{4}) +(\d+)  (\S.*)", line) for line in lines]
    assert all(found)
    scores = [float(match[1]) for match in found]
    assert scores == sorted(scores, reverse=True)
    assert done.stderr == "dinov2-vits14-linear, licence of the weights: Apache-2.0\n"


def test_json_for_several_photos(weights: Path, example_photos: Path, tmp_path: Path) -> None:
    names = ("chelsea.png", "coffee.png")
    arguments = [str(example_photos / name) for name in names]
    arguments += [
        "--model",
        str(weights / HEAD),
        "--json",
        "--top",
        "3",
        "-o",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(main, ["classify", *arguments])
    assert result.exit_code == 0, result.output
    documents = json.loads(result.stdout)
    assert [Path(entry["image"]["path"]).name for entry in documents] == list(names)
    for entry in documents:
        assert entry["schema"] == "dune.classes/1"
        assert len(entry["classes"]) == 3
        assert entry["classes"][0]["wordnet_id"].startswith("n")
        assert [model["licence"] for model in entry["provenance"]["models"]] == ["Apache-2.0", "Apache-2.0"]
        assert json.loads((tmp_path / "out" / f"{Path(entry['image']['path']).stem}.json").read_text()) == entry


def test_without_weights_and_with_wrong_ones(weights: Path, example_photos: Path) -> None:
    photo = str(example_photos / "chelsea.png")
    bundled = CliRunner().invoke(main, ["classify", photo])
    assert bundled.exit_code == 0
    assert "cat" in bundled.stdout.splitlines()[0] and "dune-classify, licence of the weights" in bundled.stderr
    missing = CliRunner().invoke(main, ["classify", photo, "--model", "dinov2-vits14-linear"])
    assert missing.exit_code == 3
    assert "dune weights pull dinov2-vits14-linear'" in missing.stderr
    wrong = CliRunner().invoke(main, ["classify", photo, "--model", str(weights / "dinov2_vits14_nyu_dpt_head.pth")])
    assert wrong.exit_code == 2
    assert "DINOv2's depth head" in wrong.stderr
    assert "dune depth --model" in wrong.stderr
