"""What a run keeps (teacher cache, labels, log): what is damaged is computed anew, with a note and the same numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dune_cli.training.common.run_folder import RunFolder
from dune_cli.training.matcher import teacher_matches
from dune_cli.training.matcher.scenes import TrainingScene
from dune_cli.training.matcher.teacher_matches import SceneMatches, match_scenes, read_matches
from support.published_files import dinov2_manifest, make_state_dict

TINY = ("--student", "vit:64x1", "--size", 28, "--batch-size", 2, "--steps", 2, "--log-every", 1, "--held-out", 0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("teacher") / "dinov2.pth"
    torch.save(make_state_dict(dinov2_manifest(64, 1, 2, registers=4), 3), path)
    return f"dinov2={path}"


def test_damaged_shards_are_computed_anew_with_the_same_numbers(
    distill, teacher: str, photos: Path, tmp_path: Path
) -> None:
    cached = ("--cache", tmp_path / "cache")
    assert distill(teacher, photos, tmp_path / "a", *TINY, *cached).exit_code == 0
    shards = sorted((tmp_path / "cache").rglob("*.safetensors"))
    whole = [shard.read_bytes() for shard in shards]
    assert len(shards) == 2
    shards[0].write_bytes(whole[0][:-9] + b"\0" + whole[0][-8:])
    shards[1].write_bytes(whole[0])  # whole, and of other photos
    again = distill(teacher, photos, tmp_path / "b", *TINY, *cached)
    assert again.exit_code == 0, again.output
    assert "2 of 2 shards to compute" in again.stderr and f"{shards[0]} is damaged" in again.stderr
    assert [shard.read_bytes() for shard in shards] == whole
    one, other = ((tmp_path / name / "student.safetensors").read_bytes() for name in "ab")
    assert one == other
    assert "shards to compute" not in distill(teacher, photos, tmp_path / "c", *TINY, *cached).stderr


def test_a_damaged_log_does_not_stop_a_run(distill, teacher: str, photos: Path, tmp_path: Path) -> None:
    assert distill(teacher, photos, tmp_path / "run", *TINY).exit_code == 0
    log = tmp_path / "run" / "log.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([lines[0].replace('"step": 1', '"step": "one"'), "[" * 4000, "7", lines[1], ""]))
    (tmp_path / "run" / "broken.jsonl").write_text('{"photo": 5, "why": null}\nnull\n')
    again = distill(teacher, photos, tmp_path / "run", *TINY)
    assert again.exit_code == 0, again.output
    assert "3 damaged lines" in again.stderr and "2 damaged lines" in again.stderr
    assert [entry["step"] for entry in json.loads((tmp_path / "run" / "report.json").read_text())["log"]] == [2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"config": []}, "config is a list; an object is needed"),
        ({"inputs": None}, "has no 'inputs'"),
        ({"schema": "dune.matcher-run/1"}, "is not of a distillation"),
        ({"config": {"steps": "x" * 5000}}, "and 19 more"),
        ({"config": {"teachers": "a\nb\x1b[31m\ud800"}}, r"teachers: 'a\nb\x1b[31m\ud800' → dinov2="),
    ],
)
def test_settings_that_are_none_are_one_sentence(
    change: dict, says: str, distill, teacher: str, photos: Path, tmp_path: Path
) -> None:
    assert distill(teacher, photos, tmp_path / "run", *TINY).exit_code == 0
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused = distill(teacher, photos, tmp_path / "run", *TINY)
    errors = [line for line in refused.stderr.splitlines() if line.startswith("dune:")]
    assert refused.exit_code == 2 and len(errors) == 1 and says in errors[0] and len(errors[0]) < 900


def test_a_damaged_scene_is_matched_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wall").mkdir()
    scene = TrainingScene("wall", tuple(tmp_path / "wall" / f"{k}.jpg" for k in range(3)), False)
    for path in scene.photos:
        path.write_text(path.name)
    names = tuple(path.name for path in scene.photos)
    points = tuple(np.full((4, 2), k, np.float32) for k in range(3))
    each = np.stack([np.arange(4, dtype=np.int32)] * 2, 1)
    pairs = np.array([[0, 1], [1, 2], [0, 2]], np.int32)
    ones = np.ones(4, np.float32)
    found = SceneMatches("wall", names, np.full((3, 2), 9, np.int32), points, pairs, (each,) * 3, (ones,) * 3)
    labels = tmp_path / "labels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher_matches, "match_scene", lambda *_: found)
        assert read_matches(labels, scene) is None and match_scenes([scene], None, labels) == 1
        path = teacher_matches.matches_file(labels, "wall")
        whole = path.read_bytes()
        assert read_matches(labels, scene) is not None and not capsys.readouterr().err
        path.write_bytes(whole[:-1])
        assert read_matches(labels, scene) is None and "computed again" in capsys.readouterr().err
        match_scenes([scene], None, labels)
    assert path.read_bytes() == whole
    scene.photos[1].write_text("another photo")
    assert read_matches(labels, scene) is None and not capsys.readouterr().err


def test_the_log_of_a_run_keeps_whole_entries_alone(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in (1, 2, 2, 3):
        run.append_log({"step": step, "loss": float("nan") if step == 3 else 1.0, "seconds": 2.0})
    run.append_log({"step": 0, "seconds": 1.0})
    run.append_log({"step": 9})
    assert [sorted(entry) for entry in run.read_log()] == [["loss", "seconds", "step"]] * 2 + [["seconds", "step"]]
    shutil.copy(tmp_path / "log.jsonl", tmp_path / "broken.jsonl")
    assert run.read_broken() == {}
