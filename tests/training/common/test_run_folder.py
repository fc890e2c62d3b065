"""Damaged logs and settings of a run folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from dune_cli.training.common.run_folder import RunFolder
from support.published_files import dinov2_manifest, make_state_dict

TINY = ("--student", "vit:64x1", "--size", 28, "--batch-size", 2, "--steps", 2, "--log-every", 1, "--held-out", 0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("teacher") / "dinov2.pth"
    torch.save(make_state_dict(dinov2_manifest(64, 1, 2, registers=4), 3), path)
    return f"dinov2={path}"


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


def test_the_log_of_a_run_keeps_whole_entries_alone(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in (1, 2, 2, 3):
        run.append_log({"step": step, "loss": float("nan") if step == 3 else 1.0, "seconds": 2.0})
    run.append_log({"step": 0, "seconds": 1.0})
    run.append_log({"step": 9})
    assert [sorted(entry) for entry in run.read_log()] == [["loss", "seconds", "step"]] * 2 + [["seconds", "step"]]
    shutil.copy(tmp_path / "log.jsonl", tmp_path / "broken.jsonl")
    assert run.read_broken() == {}
