"""`--preflight` estimates a run and refuses what cannot fit; number types and compilation."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from dune_cli.training.distill import preflight
from support.published_files import dinov2_manifest, make_state_dict

TINY = ("--student", "vit:64x1", "--size", 28, "--batch-size", 2, "--steps", 1000)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("teacher") / "dinov2.pth"
    torch.save(make_state_dict(dinov2_manifest(64, 1, 2, registers=4), 3), path)
    return f"dinov2={path}"


def test_estimates_and_leaves_nothing(distill, teacher: str, photos: Path, tmp_path: Path) -> None:
    result = distill(teacher, photos, tmp_path / "run", *TINY, "--preflight", "--held-out", 0)
    assert result.exit_code == 0, result.output
    estimate = json.loads(result.stdout)
    assert estimate["hours"] == pytest.approx(1000 * 2 / estimate["images_per_second"] / 3600)
    assert 1e8 < estimate["memory_bytes"] < estimate["memory_available_bytes"] and estimate["cache_bytes"] == 0
    assert estimate["disk_free_bytes"] <= shutil.disk_usage(tmp_path).total
    assert list(tmp_path.iterdir()) == []

    words = (*TINY, "--steps", 1, "--held-out", 0, "--cache", tmp_path / "cache", "--crops", 2)
    estimate = json.loads(distill(teacher, photos, tmp_path / "run", *words, "--preflight").stdout)
    assert distill(teacher, photos, tmp_path / "run", *words).exit_code == 0
    written = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.safetensors"))
    assert estimate["cache_bytes"] == pytest.approx(written, rel=0.05)
    checkpoint = sum(p.stat().st_size for p in (tmp_path / "run" / "checkpoints").rglob("*") if p.is_file())
    assert estimate["checkpoint_bytes"] == pytest.approx(3 * checkpoint, rel=0.05)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["cache"]["bytes"] == written


def test_refuses_what_cannot_fit(
    distill, teacher: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*TINY, "--preflight", "--held-out", 0)
    result = distill(teacher, photos, tmp_path / "run", *words, "--cache", tmp_path / "c", "--crops", 10**9)
    assert result.exit_code == 1 and "for the teacher cache" in result.stderr and "fewer --crops" in result.stderr
    monkeypatch.setattr(preflight, "_memory", lambda config: (8 * 10**9, 8 * 10**9))
    result = distill(teacher, photos, tmp_path / "run", *words)
    assert result.exit_code == 1 and "8.00 GB are there; use a smaller --batch-size" in result.stderr

    def no_memory(config: object, output: Path) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(preflight, "distill", no_memory)
    result = distill(teacher, photos, tmp_path / "run", *words)
    assert result.exit_code == 1 and "a step does not fit into the memory" in result.stderr
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "run it without torchrun" in distill(teacher, photos, tmp_path / "run", *words).stderr


def test_bfloat16_is_near_float32(distill, teacher: str, photos: Path, tmp_path: Path, log) -> None:
    tiny = (*TINY, "--steps", 3)
    for dtype in ("float32", "bfloat16"):
        assert distill(teacher, photos, tmp_path / dtype, *tiny, "--dtype", dtype).exit_code == 0
    exact, rough = (log(tmp_path / dtype) for dtype in ("float32", "bfloat16"))
    for a, b in zip(exact, rough):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.05) and b["loss"] != a["loss"]


@pytest.mark.slow
def test_compiled_students(distill, distill_process, teacher: str, photos: Path, tmp_path: Path, log) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a compiler")
    tiny = (*TINY, "--steps", 2)
    assert distill(teacher, photos, tmp_path / "plain", *tiny).exit_code == 0
    # a process of its own: the compiler loads setuptools, which refuses when another test has loaded distutils
    result = distill_process(teacher, photos, tmp_path / "compiled", *tiny, "--compile")
    assert result.returncode == 0, result.stderr
    for a, b in zip(log(tmp_path / "plain"), log(tmp_path / "compiled")):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4)


def test_tensorboard(distill, teacher: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*TINY, "--steps", 1, "--logger", "tensorboard")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    result = distill(teacher, photos, tmp_path / "run", *words)
    assert result.exit_code == 4 and "pip install tensorboard" in result.stderr
    monkeypatch.undo()
    pytest.importorskip("tensorboard")
    assert distill(teacher, photos, tmp_path / "run", *words).exit_code == 0
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
