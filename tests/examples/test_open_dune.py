"""The open recipe runs end to end: two stages, from files in the published layout, and goes on where it was stopped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from dune_cli import load_encoder
from dune_cli.training.distill.config import DistillConfig
from support import EXAMPLES
from support.examples import load_example
from support.published_files import dinov2_manifest, dune_manifest, dune_tree, make_state_dict
from support.teacher_files import write_photos


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("teachers")
    torch.save(make_state_dict(dinov2_manifest(64, 1, 2, registers=4), 3), folder / "dinov2.pth")
    dune = make_state_dict(dune_manifest(64, 1, 2, {"dinov2": 32}), 4)
    torch.save(dune_tree(dune), folder / "dune.pth")
    return [f"dinov2={folder / 'dinov2.pth'}", f"dune={folder / 'dune.pth'}"]


def _run(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["open_dune.py", *words])
    load_example(EXAMPLES / "open_dune.py").main()


def test_both_stages(
    teachers: list[str],
    example_photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = write_photos(tmp_path / "photos", example_photos)
    settings = ["--student", "vit:64x1", "--batch-size", "2", "--images", "4", "--size", "28", "--workers", "1"]
    words = [*(word for name in teachers for word in ("--teacher", name)), "--data", str(photos), *settings]
    _run(monkeypatch, [*words, "-o", str(tmp_path / "run")])
    last = tmp_path / "run" / "stage2" / "student.safetensors"
    assert capsys.readouterr().out.splitlines()[-1] == str(last)
    encoder = load_encoder(last, "cpu")
    assert encoder.teachers == ("dinov2", "dune") and "started from student.safetensors" in encoder.source.licence
    made = last.stat().st_mtime_ns
    _run(monkeypatch, [*words, "-o", str(tmp_path / "run")])
    assert last.stat().st_mtime_ns == made
    _run(monkeypatch, [*words, "-o", str(tmp_path / "other"), "--preflight"])
    assert '"stage2"' in capsys.readouterr().out and not (tmp_path / "other" / "stage1" / "config.json").exists()


def test_the_stages_are_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    example = load_example(EXAMPLES / "open_dune.py")
    options = example.parser().parse_args(["--data", "photos/", "-o", "run"])
    first, second = (example.stage_config(name, options) for name in example.STAGES)
    assert isinstance(first, DistillConfig) and first.teachers == ("dinov2", "da3", "people")
    assert (first.size_px, second.size_px) == (336, 448)
    assert first.peak_learning_rate == pytest.approx(3e-4 * 4) and second.peak_learning_rate == pytest.approx(2e-4)
    assert first.steps == round(100 * 1_281_167 / 1024) and first.sharing == "lowest_loss"
