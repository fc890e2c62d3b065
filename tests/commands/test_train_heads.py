"""`dune train depth | segment | classify`, the heads in `dune depth | segment | classify`, and `dune eval depth`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dune_cli.cli import main
from dune_cli.commands.train._heads import held_out_lines
from support.labelled_photos import write_class_set, write_depth_set, write_mask_set
from support.small_encoders import write_small_mini

SMALL = ("--size", 48, "--views", 2, "--batch-size", 4, "--held-out", 0.3, "--device", "cpu", "--steps", 10)
SMALL += ("--evaluate-every", 5, "--log-every", 5, "--average", 0.8)


def dune(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_mini(tmp_path_factory.mktemp("encoder") / "mini.safetensors")


def test_depth_from_training_to_scores(encoder: Path, tmp_path: Path) -> None:
    data = write_depth_set(tmp_path / "data")
    words = (
        "train",
        "depth",
        "--data",
        data,
        "--encoder",
        encoder,
        *SMALL,
        "--weight",
        "room=0.5",
        "-o",
        tmp_path / "run",
    )
    trained = dune(*words)
    assert trained.exit_code == 0, trained.output
    head = tmp_path / "run" / "head.safetensors"
    assert str(head) in trained.stdout.splitlines()
    again = dune(*words, "--json")
    assert json.loads(again.stdout)["schema"] == "dune.head-report/1"

    photo = data / "room" / "0000.jpg"
    model = ("--model", head, "--encoder", encoder)
    done = dune("depth", photo, "-o", tmp_path / "depth.png", *model, "--fov-deg", 60, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["scale"] == "metric" and [m["name"] for m in document["provenance"]["models"]] == [
        "head.safetensors",
        "mini.safetensors",
    ]
    models = ("--model", head, "--encoder", encoder)
    shown = dune("eval", "depth", data, *models, "-o", tmp_path / "scores.json")
    assert shown.exit_code == 0, shown.output
    assert "affine: AbsRel" in shown.stdout and "recall of depth edges" in shown.stdout
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["methods"] == ["constant", "vertical gradient", "mean map", "head"]
    assert {row["set"] for row in scores["groups"]} == {"indoor"}
    assert dune("eval", "depth", data, *models, "--set", "attic").output.count("\n") == 1


def test_segmentation_from_training_to_class_maps(encoder: Path, tmp_path: Path) -> None:
    data = write_mask_set(tmp_path / "data")
    trained = dune("train", "segment", "--data", data, "--encoder", encoder, *SMALL, "-o", tmp_path / "run")
    assert trained.exit_code == 0, trained.output
    model = ("--model", tmp_path / "run" / "head.safetensors", "--encoder", encoder)
    done = dune("segment", data / "images" / "0000.jpg", "-o", tmp_path / "classes.png", *model, "--json")
    assert done.exit_code == 0, done.output
    assert {entry["name"] for entry in json.loads(done.stdout)["classes"]} <= {"ground", "thing"}


def test_classification_from_training_to_classes(encoder: Path, tmp_path: Path) -> None:
    data = write_class_set(tmp_path / "data")
    trained = dune("train", "classify", "--data", data, "--encoder", encoder, *SMALL, "-o", tmp_path / "run")
    assert trained.exit_code == 0, trained.output
    model = ("--model", tmp_path / "run" / "head.safetensors", "--encoder", encoder)
    done = dune("classify", data / "red" / "0000.jpg", *model)
    assert done.exit_code == 0, done.output
    assert {line.split()[-1] for line in done.stdout.splitlines()} == {"blue", "red"}
    wrong = dune("depth", data / "red" / "0000.jpg", "-o", tmp_path / "d.png", *model)
    assert wrong.exit_code == 2
    assert "it holds a head for classification, not for depth; dune classify takes it" in wrong.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "depth", "--data", "nowhere", "-o", "run"), "--data nowhere is no folder; check the path"),
        (("train", "depth", "--data", ".", "--weight", "a", "-o", "run"), "--weight 'a' is not NAME=X"),
        (("train", "segment", "--data", ".", "--encoder", "no.pth", "-o", "run"), "no.pth: no such file"),
        (("train", "classify", "-o", "run"), "--data needs at least one source of labelled photos"),
        (("train", "depth", "--photos", ".", "-o", "run"), "--photos and --teacher go together"),
        (("train", "depth", "--data", ".", "--held-out", "0", "-o", "run"), "--held-out 0.0 must lie between 0 and 1"),
        (("eval", "depth", "nowhere"), "nowhere is no folder; check the path"),
    ],
)
def test_mistakes_are_one_sentence(words: tuple[str, ...], message: str) -> None:
    result = dune(*words)
    assert result.exit_code == 2
    assert message in result.output and result.output.count("\n") == 1


def test_scores_of_segmentation_and_classification(encoder: Path, tmp_path: Path) -> None:
    masks, folders = write_mask_set(tmp_path / "masks"), write_class_set(tmp_path / "folders")
    for task, data in (("segment", masks), ("classify", folders)):
        run = tmp_path / task
        words = ("train", task, "--data", data, "--encoder", encoder, *SMALL, "--steps", 40, "-o", run)
        assert dune(*words).exit_code == 0
        done = dune("eval", task, data, "--model", run / "head.safetensors", "--encoder", encoder, "--json")
        assert done.exit_code == 0, done.output
        rows = json.loads(done.stdout)["rows"]
        if task == "segment":
            assert [row["method"] for row in rows[:2]] == ["majority class", "majority by place"]
            assert rows[2]["mean_iou"] > rows[0]["mean_iou"] + 0.1
            assert list(rows[2]["iou"]) == ["ground", "thing"]
        else:
            assert [row["method"] for row in rows[:2]] == ["chance", "majority class"]
            assert rows[2]["top1"] > 0.8 and rows[2]["top5"] == 1
    (folders / "red").rename(folders / "green")
    wrong = dune("eval", "classify", folders, "--model", run / "head.safetensors", "--encoder", encoder)
    assert (
        wrong.exit_code == 2 and "the folder green is no class of head.safetensors; its classes: blue" in wrong.output
    )


def test_the_scores_of_held_out_photos_in_words() -> None:
    one = {"photos": 3, "top1": 2 / 3, "mean_over_classes": 0.5, "confusion": [[1]]}
    assert held_out_lines(one) == ["3 held-out photos: top1 0.667, mean over classes 0.500"]
    sets = {"room": {"photos": 1, "raw abs_rel": 0.25}, "photos": {"photos": 2, "raw abs_rel": 0.5}}
    assert held_out_lines(sets) == [
        "room, 1 held-out photo: raw abs rel 0.250",
        "photos, 2 held-out photos: raw abs rel 0.500",
    ]
