"""`dune distill` from end to end, with three teachers out of files in the official layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors import safe_open
from safetensors.torch import load_file

from dune_cli.checkpoints.loader import load_encoder
from support.teacher_files import NAMES

Distill = Callable[..., Result]


@pytest.fixture(scope="module")
def tagged(photos: Path) -> list[str]:
    """The same photos as data of each teacher, so that groups are seen to be told apart by their tags alone."""
    return [f"{name}={photos}" for name in NAMES]


def test_three_official_teachers_in_one_student(
    distill: Distill, teachers: str, photos: Path, tmp_path: Path, log: Callable[[Path], list[dict[str, Any]]]
) -> None:
    output = tmp_path / "run"
    result = distill(teachers, photos, output, "--held-out", 0.2)
    assert result.exit_code == 0, result.output
    names = ["student.safetensors", "student_fp16.safetensors", "report.json", "report.html"]
    assert result.stdout.split() == [str(output / name) for name in names]

    entries = log(output)
    assert [entry["step"] for entry in entries] == [1, 2, 3]
    for entry in entries:
        assert sum(entry[f"{name}/coefficient"] for name in NAMES) == pytest.approx(1)
    kinds = {key.rpartition("/")[0] for key in entries[0] if key.endswith("/cosine")}
    assert kinds == {"dinov2/cls", "dinov2/patch", "mast3r/patch", "multihmr/patch"}

    report = json.loads((output / "report.json").read_text())
    assert report["schema"] == "dune.distill/1"
    assert {name: t["token_types"] for name, t in report["teachers"].items()} == {
        "dinov2": ["cls", "patch"],
        "mast3r": ["patch"],
        "multihmr": ["patch"],
    }
    assert {model["name"] for model in report["provenance"]["models"]} >= {"mast3r.pth", "multihmr.pt"}
    assert report["photos"]["held_out"] + report["photos"]["train"] == 24
    assert len(report["held_out"]) == 4 and report["held_out"][0]["photos"] == report["photos"]["held_out"]
    page = (output / "report.html").read_text()
    assert page.count("<svg") == 4 and "data:image/png;base64," in page and "http" not in page

    encoder = load_encoder(output / "student.safetensors")
    assert encoder.teachers == NAMES and encoder.patch == 14 and encoder.width == 64
    image = torch.rand(1, 3, 56, 70)
    assert encoder.project(image, "mast3r").patches.shape == (1, 20, 192)
    assert encoder.source.licence.startswith("distilled by dune from")


@pytest.mark.parametrize("sharing", ["none", "lowest_loss", "own_data", "own+generic_data"])
def test_sharing_strategies_on_tagged_data(
    sharing: str, distill: Distill, teachers: str, tagged: list[str], tmp_path: Path, log: Callable
) -> None:
    result = distill(teachers, tagged, tmp_path / "run", "--sharing", sharing, "--steps", 2)
    assert result.exit_code == 0, result.output
    for entry in log(tmp_path / "run"):
        share = [entry[f"{name}/coefficient"] for name in NAMES]
        dropped = [entry[f"{name}/dropped"] for name in NAMES]
        assert sum(share) == pytest.approx(1)
        if sharing == "none":
            assert share == pytest.approx([1 / 3] * 3) and dropped == [0, 0, 0]
        elif sharing == "own_data":
            assert share == pytest.approx([1 / 3] * 3) and dropped == pytest.approx([2 / 3] * 3)
        elif sharing == "own+generic_data":  # 2 images train all three, 2 + 2 their own: 10 pairs
            assert share == pytest.approx([0.2, 0.4, 0.4]) and dropped == pytest.approx([2 / 3, 1 / 3, 1 / 3])
        else:
            assert all(value < 1 for value in dropped) and max(dropped) > 0


@pytest.mark.parametrize("cached", [False, True])
def test_an_images_own_teacher_is_its_tags(
    cached: bool, distill: Distill, teachers: str, photos: Path, tmp_path: Path, log: Callable
) -> None:
    """Teachers in another order than the alphabet's; of three images two are the first one's."""
    dinov2, _, multihmr = teachers.split(",")
    data = [f"dinov2={photos}", f"multihmr={photos}"]
    extra = ("--cache", tmp_path / "cache", "--crops", 1) if cached else ()
    arguments = ("--sharing", "own_data", "--batch-size", 3, "--steps", 2, *extra)
    assert distill(f"{multihmr},{dinov2}", data, tmp_path / "run", *arguments).exit_code == 0
    for entry in log(tmp_path / "run"):
        assert entry["multihmr/coefficient"] == pytest.approx(2 / 3)
        assert entry["dinov2/coefficient"] == pytest.approx(1 / 3)


def test_the_same_command_twice_changes_nothing(distill: Distill, teachers: str, photos: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "a", tmp_path / "b"]
    for output in outputs:
        assert distill(teachers, photos, output).exit_code == 0
    first, second = (load_file(output / "student.safetensors") for output in outputs)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    before = (outputs[0] / "student.safetensors").read_bytes()
    again = distill(teachers, photos, outputs[0])  # nothing left to train: the files are written again
    assert again.exit_code == 0, again.output
    assert (outputs[0] / "student.safetensors").read_bytes() == before


def test_parts_of_a_batch_give_the_whole_batch(
    distill: Distill, teachers: str, photos: Path, tmp_path: Path, log: Callable
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert distill(teachers, photos, whole).exit_code == 0
    assert distill(teachers, photos, parts, "--accumulate", 3).exit_code == 0
    for one, three in zip(log(whole), log(parts)):
        for key in (key for key in one if "/" in key or key == "loss"):
            assert three[key] == pytest.approx(one[key], abs=1e-5), key


@pytest.mark.parametrize("projector", ["sp", "lp"])
def test_other_projectors_and_phi_s(
    projector: str, distill: Distill, teachers: str, photos: Path, tmp_path: Path
) -> None:
    result = distill(teachers, photos, tmp_path / "run", "--projector", projector, "--norm", "phi-s", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["config"]["projector"] == projector
    assert load_encoder(tmp_path / "run" / "student.safetensors").teachers == ()


def test_training_learns(distill: Distill, teachers: str, photos: Path, tmp_path: Path) -> None:
    one_photo = tmp_path / "photos"
    one_photo.mkdir()
    (one_photo / "a.png").symlink_to(sorted(photos.iterdir())[0])
    result = distill(
        teachers, one_photo, tmp_path / "run", "--steps", 25, "--lr", 0.1, "--sharing", "none",
        "--no-photometric", "--held-out", 0, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    losses = [entry["loss"] for entry in json.loads(result.stdout)["log"]]
    assert losses[-1] < 0.8 * losses[0]


def test_two_stages(distill: Distill, teachers: str, photos: Path, tmp_path: Path) -> None:
    assert distill(teachers, photos, tmp_path / "one", "--steps", 2).exit_code == 0
    start = tmp_path / "one" / "student.safetensors"
    result = distill(teachers, photos, tmp_path / "two", "--init", start, "--size", 84, "--steps", 1, "--batch-size", 2)
    assert result.exit_code == 0, result.output
    with safe_open(tmp_path / "two" / "student.safetensors", "pt") as file:
        assert "; started from student.safetensors: distilled by dune from " in file.metadata()["dune.licence"]
    one, two = (load_file(tmp_path / name / "student.safetensors") for name in ("one", "two"))
    assert one["encoder.pos_embed"].shape[1] == 1 + 16 and two["encoder.pos_embed"].shape[1] == 1 + 36
    for key in one:  # a step of learning rate 2e-6 later; weights are drawn with a deviation of 2e-2
        if key != "encoder.pos_embed" and not key.startswith("teacher_norms."):
            assert torch.allclose(one[key], two[key], atol=1e-5, rtol=0), key


def test_a_file_of_another_shape_cannot_be_the_start(
    distill: Distill, teachers: str, photos: Path, tmp_path: Path
) -> None:
    assert distill(teachers, photos, tmp_path / "one", "--steps", 1).exit_code == 0
    start = tmp_path / "one" / "student.safetensors"
    result = distill(teachers, photos, tmp_path / "two", "--init", start, "--student", "vit:64x3")
    assert result.exit_code == 2
    assert "does not fit the student" in result.stderr and "blocks.2" in result.stderr


def test_as_a_process(dune_process: Callable, teachers: str, photos: Path, tmp_path: Path) -> None:
    words = ["--teachers", teachers.split(",")[0], "--data", photos, "-o", tmp_path / "run", "--student", "vit:64x1"]
    sizes = ["--size", 28, "--batch-size", 2, "--steps", 1]
    result = dune_process("distill", *words, *sizes)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[0] == str(tmp_path / "run" / "student.safetensors")
    assert "Traceback" not in result.stderr and "Warning" not in result.stderr
