"""`dune segment`: class map, overlay, JSON; wrong files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dune_cli.cli import main
from dune_cli.io.png import class_colors
from support.dinov2_head_files import VOC_NAMES, write_small_set

VOC, ADE = "dinov2_vits14_voc2012_linear_head.pth", "dinov2_vits14_ade20k_linear_head.pth"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_set(tmp_path_factory.mktemp("head-weights"))


def test_names_and_colours_of_the_file(
    weights: Path, example_photos: Path, tmp_path: Path, dune: Callable[..., CompletedProcess[str]]
) -> None:
    target = tmp_path / "c.png"
    done = dune(
        "segment",
        example_photos / "chelsea.png",
        "--model",
        weights / VOC,
        "-o",
        target,
        "--overlay",
        "--device",
        "cpu",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{target}\n"
    facts = json.loads((tmp_path / "c.json").read_text())
    picture = Image.open(target)
    classes = np.asarray(picture)
    assert (picture.mode, picture.size) == ("P", (451, 300))
    assert facts["schema"] == "dune.classmap/1"
    assert {entry["id"]: entry["pixels"] for entry in facts["classes"]} == dict(
        zip(*np.unique(classes, return_counts=True))
    )
    for entry in facts["classes"]:
        assert entry["name"] == VOC_NAMES[entry["id"]]
        assert entry["color"] == [entry["id"] * factor for factor in (1, 2, 3)]
    assert Image.open(tmp_path / facts["overlay"]).size == (451, 300)
    first = facts["classes"][0]
    assert f"{first['name']} {first['share']:.0%}" in done.stderr


def test_numbers_where_the_file_has_no_names(weights: Path, example_photos: Path, tmp_path: Path) -> None:
    arguments = [
        str(example_photos / "coffee.png"),
        "--model",
        str(weights / ADE),
        "-o",
        str(tmp_path / "out"),
        "--json",
    ]
    result = CliRunner().invoke(main, ["segment", *arguments, "--size", "300", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "carries no names of its 150 classes" in result.stderr
    facts = json.loads(result.stdout)
    assert (facts["names_from"], facts["overlay"], facts["classes_known"]) == (None, None, 150)
    for entry in facts["classes"]:
        assert entry["name"] is None
        assert entry["color"] == class_colors(150)[entry["id"]].tolist()
    assert np.asarray(Image.open(tmp_path / "out" / "coffee.png")).shape == (400, 600)


def test_without_weights_and_with_wrong_ones(weights: Path, example_photos: Path, tmp_path: Path) -> None:
    arguments = [str(example_photos / "coffee.png"), "-o", str(tmp_path / "c.png")]
    missing = CliRunner().invoke(main, ["segment", *arguments, "--model", "dinov2-vits14-ade20k-linear"])
    assert missing.exit_code == 3
    assert "dune weights pull dinov2-vits14-ade20k-linear'" in missing.stderr
    wrong = CliRunner().invoke(main, ["segment", *arguments, "--model", str(weights / "dinov2_vits14_linear_head.pth")])
    assert wrong.exit_code == 2
    assert "DINOv2's image classification head" in wrong.stderr
    assert not (tmp_path / "c.png").exists()
