"""`dune eval pairs` on a made-up root around the example stereo pair."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from support.published_files import Fixture, mast3r_tree, small_two_files

Dune = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def root(tmp_path: Path, example_photos: Path) -> Path:
    """Two sets of one pair each: the stereo pair, and the same seen from the other side, with photos outside."""
    photos = tmp_path / "photos"
    photos.mkdir()
    K = json.loads((example_photos / "motorcycle_intrinsics.json").read_text())
    for side in ("left", "right"):
        shutil.copy(example_photos / f"motorcycle_{side}.png", photos)
    there, back = np.eye(4), np.eye(4)
    there[0, 3], back[0, 3] = -0.193001, 0.193001
    for name, a, b, pose in (("stereo", "left", "right", there), ("wide", "right", "left", back)):
        folder = tmp_path / "pairs" / name
        folder.mkdir(parents=True)
        pair = {
            "id": f"{a}-{b}",
            "image_a": f"../../photos/motorcycle_{a}.png",
            "image_b": f"../../photos/motorcycle_{b}.png",
            "K_a": K[f"motorcycle_{a}.png"],
            "K_b": K[f"motorcycle_{b}.png"],
            "T_a2b": pose.tolist(),
        }
        (folder / "pairs.json").write_text(json.dumps({"name": name, "pairs": [pair]}))
    return tmp_path / "pairs"


def test_table_and_json(dune: Dune, root: Path, tmp_path: Path) -> None:
    output = tmp_path / "table.json"
    done = dune("eval", "pairs", root, "--matcher", "sift", "--size", "480,0", "-o", output)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "sift" in done.stdout
    assert "chance" in done.stdout
    assert "original" in done.stdout
    result = json.loads(output.read_text())
    assert result["schema"] == "dune.eval-pairs/1"
    assert [(row["set"], row["size_px"]) for row in result["rows"]] == [
        ("stereo", 480), ("stereo", 0), ("wide", 480), ("wide", 0)
    ]  # fmt: skip
    for row in result["rows"]:
        assert row["scores"]["sift"]["auc10"] > 0.95
        assert row["scores"]["sift"]["failures"] == 0
        assert row["scores"]["chance"]["auc10"] < 0.1
        assert row["scores"]["sift"]["seconds_total"] >= row["scores"]["sift"]["seconds_matching"] > 0
    assert {pair["id"] for pair in result["pairs"]["sift"]} == {"left-right", "right-left"}
    assert result["provenance"]["seed"] == 0
    assert len(result["provenance"]["inputs"]) == 2
    again = dune("eval", "pairs", root, "--matcher", "sift", "-o", output)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


def test_json_on_stdout_is_repeatable(dune: Dune, root: Path) -> None:
    runs = []
    for _ in range(2):
        done = dune("eval", "pairs", root, "--matcher", "sift", "--set", "stereo", "--json", "--seed", "7")
        assert done.returncode == 0, done.stderr
        (pair,) = json.loads(done.stdout)["pairs"]["sift"]
        runs.append({key: value for key, value in pair.items() if not key.startswith("seconds")})
    assert runs[0] == runs[1]


def test_auto_says_which_matcher_it_took(dune: Dune, root: Path) -> None:
    done = dune("eval", "pairs", root, "--limit", "1", "--set", "stereo", "--size", "64", "--json")
    assert done.returncode == 0, done.stderr
    (column,) = json.loads(done.stdout)["columns"]
    assert f"matcher {column['matcher']}" in done.stderr


def test_two_view_models_run_end_to_end(dune: Dune, root: Path, tmp_path: Path) -> None:
    fixture = Fixture("mast3r_mini")
    mini = tmp_path / "mini.pth"
    torch.save(mast3r_tree(fixture.config["model"], fixture.state()), mini)
    done = dune("eval", "pairs", root, "--model", mini, "--set", "stereo", "--json", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["columns"][0]["matcher"] == "mast3r"
    assert result["columns"][0]["working_size_px"] == 512
    assert result["pairs"]["mast3r"][0]["matches"] > 50
    assert result["provenance"]["models"][0]["sha256"]


def test_a_model_in_two_files_beside_a_matcher(dune: Dune, root: Path, tmp_path: Path) -> None:
    decoder, encoder = small_two_files(tmp_path)
    model = ["--model", decoder, "--encoder", encoder]
    done = dune("eval", "pairs", root, "--matcher", "sift,mast3r", *model, "--limit", "1", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [column["matcher"] for column in result["columns"]] == ["sift", "mast3r"]
    assert result["columns"][1]["working_size_px"] == 518


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["--matcher", "shift"],
            2,
            "unknown matcher 'shift'; allowed: auto, aliked-lightglue, dune, loma-b128, mast3r, sift",
        ),
        (["--matcher", "mast3r"], 2, "needs a two-view model"),
        (["--matcher", "sift", "--model", "x.pth"], 2, "are for the matchers dune and mast3r"),
        (["--model", "absent.pth"], 2, "absent.pth"),
        (["--matcher", "sift", "--set", "outdoor"], 2, "unknown set outdoor"),
        (["--matcher", "sift", "-o", "table.txt"], 2, ".json"),
        (["--matcher", "sift", "--size", "ten"], 2, "such as 480,0"),
        (["--matcher", "sift", "--size", "8"], 2, "such as 480,0"),
    ],
)
def test_mistakes_are_one_sentence(dune: Dune, root: Path, arguments: list[str], code: int, message: str) -> None:
    done = dune("eval", "pairs", root, *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("damage", ["cut", "missing photo", "broken photo", "no folder"])
def test_damaged_roots_are_one_sentence(dune: Dune, root: Path, damage: str) -> None:
    if damage == "cut":
        (root / "wide" / "pairs.json").write_text('{"pairs": [')
    elif damage == "missing photo":
        (root.parent / "photos" / "motorcycle_left.png").unlink()
    elif damage == "broken photo":
        (root.parent / "photos" / "motorcycle_left.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    else:
        shutil.rmtree(root)
    done = dune("eval", "pairs", root, "--matcher", "sift")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert {"cut": "pairs.json", "no folder": "pairs"}.get(damage, "motorcycle_left.png") in done.stderr


def test_help_is_quick_and_complete(dune: Dune) -> None:
    assert "pairs" in dune("eval", "--help").stdout
    text = dune("eval", "pairs", "--help").stdout
    for word in ("--matcher", "--size", "pixels", "Example: dune eval pairs", "[default: 480]"):
        assert word in text
