"""A run that is killed goes on bit for bit; a full disk and a folder that cannot be written leave it whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support import ROOT, TESTS
from support.published_files import dinov2_manifest, make_state_dict
from support.training_words import words

KILLS, STEPS = 8, 40
TINY = ("--student", "vit:64x1", "--size", 28, "--batch-size", 2, "--steps", STEPS, "--log-every", 1)
EVERY_STEP = ("--checkpoint-minutes", 0, "--held-out", 0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("teacher") / "dinov2.pth"
    torch.save(make_state_dict(dinov2_manifest(64, 1, 2, registers=4), 3), path)
    return f"dinov2={path}"


def assert_bit_equal(one: Path, other: Path) -> None:
    a, b = load_file(one / "student.safetensors"), load_file(other / "student.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert (one / "student.safetensors").read_bytes() == (other / "student.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_killed_at_random_moments(cached: bool, distill, teacher: str, photos: Path, tmp_path: Path) -> None:
    extra = ("--cache", tmp_path / "cache") if cached else ()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert distill(teacher, photos, whole, *TINY, *EVERY_STEP, *extra).exit_code == 0
    if cached:  # killed while filling it, too
        extra = ("--cache", tmp_path / "other")
    script = TESTS / "support" / "killed_runs.py"
    arguments = words(teacher, photos, killed, *TINY, *EVERY_STEP, *extra)
    result = subprocess.run(
        [sys.executable, script, killed, str(KILLS), *arguments],
        capture_output=True,
        text=True,
        timeout=550,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert result.returncode == 0, result.stdout[-500:] + result.stderr[-2000:]
    assert int(result.stdout.split()[-2]) == KILLS
    assert "Traceback" not in result.stderr
    assert_bit_equal(whole, killed)
    steps = [json.loads(line)["step"] for line in (killed / "log.jsonl").read_text().splitlines() if line[-1:] == "}"]
    assert set(steps) == set(range(1, STEPS + 1))
    report = json.loads((killed / "report.json").read_text())
    assert [entry["step"] for entry in report["log"]] == list(range(1, STEPS + 1))
    assert not list((killed / "checkpoints").glob(".step-*"))


@pytest.fixture
def small_disk(tmp_path: Path):
    """A tmpfs of 3 MB, and a way to make it larger; needs root and the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a tmpfs")

    def grow() -> None:
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)

    yield folder, grow
    subprocess.run(["umount", "-l", str(folder)], check=True)


def check_stopped(output: Path, stderr: str) -> None:
    """One sentence about the disk, and checkpoints that are all whole."""
    errors = [line for line in stderr.splitlines() if line.startswith("dune:")]
    assert len(errors) == 1 and "Traceback" not in stderr
    assert "cannot write the checkpoint" in errors[0] and "run the same command again" in errors[0]
    left = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert left and not any(name.startswith(".") for name in left)
    assert left[-1] in errors[0]  # the last good one is named


def test_full_disk(small_disk, distill, teacher: str, photos: Path, tmp_path: Path) -> None:
    folder, grow = small_disk
    result = distill(teacher, photos, folder / "run", *TINY, *EVERY_STEP)
    assert result.exit_code == 1, result.output
    check_stopped(folder / "run", result.stderr)
    assert "no space left on device" in result.stderr
    grow()
    assert distill(teacher, photos, folder / "run", *TINY, *EVERY_STEP).exit_code == 0
    assert distill(teacher, photos, tmp_path / "whole", *TINY, *EVERY_STEP).exit_code == 0
    assert_bit_equal(tmp_path / "whole", folder / "run")


def test_full_disk_while_the_cache_is_filled(small_disk, distill, teacher: str, photos: Path, tmp_path: Path) -> None:
    folder, _ = small_disk
    cache = ("--cache", folder, "--crops", 100)
    result = distill(teacher, photos, tmp_path / "run", *TINY, *EVERY_STEP, *cache)
    assert result.exit_code == 1
    assert result.stderr.count("dune:") == 1 and "cannot write the teacher cache" in result.stderr
    assert not list(folder.rglob(".dune-*"))


LIMITED = """
import resource, signal, sys
from dune_cli.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
main(sys.argv[2:])
"""


def test_files_that_may_not_grow(teacher: str, photos: Path, tmp_path: Path) -> None:
    """As a full disk, where mounting is not allowed: no file may have more than 400 kB."""
    arguments = words(teacher, photos, tmp_path / "run", *TINY, *EVERY_STEP)
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, "400000", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.count("dune:") == 1 and "cannot write the checkpoint" in result.stderr
    assert "Traceback" not in result.stderr and not list((tmp_path / "run" / "checkpoints").iterdir())


def test_outputs_that_cannot_be_written(distill, teacher: str, photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for output in (file, file / "below"):
        result = distill(teacher, photos, output, *TINY)
        assert result.exit_code == 2
        assert result.stderr.count("dune:") == 1 and "is a file" in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(distill, teacher: str, photos: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    result = distill(teacher, photos, tmp_path / "run", *TINY)
    tmp_path.chmod(0o700)
    assert result.exit_code == 2 and "Permission denied" in result.stderr


def test_read_only_disk(small_disk, distill, teacher: str, photos: Path) -> None:
    folder, _ = small_disk
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    result = distill(teacher, photos, folder / "run", *TINY)
    assert result.exit_code == 2
    assert "Read-only file system" in result.stderr and result.stderr.count("dune:") == 1


def test_a_damaged_checkpoint_is_named(distill, teacher: str, photos: Path, tmp_path: Path) -> None:
    tiny = (*TINY, "--steps", 2, *EVERY_STEP)
    assert distill(teacher, photos, tmp_path / "run", *tiny).exit_code == 0
    newest = tmp_path / "run" / "checkpoints" / "step-00000002"
    for path in newest.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    result = distill(teacher, photos, tmp_path / "run", *tiny)
    assert result.exit_code == 2
    assert str(newest) in result.stderr and "delete it to resume from the previous one" in result.stderr


@pytest.mark.parametrize("student", ["timm:resnet18", "dune-mini"])
def test_an_interrupted_run_of_other_students(student: str, teacher: str, photos: Path, tmp_path: Path) -> None:
    """Batch norms and group norms: stopped after two of four steps, it ends with the weights of the whole run."""
    from dune_cli.training.common import checkpoints
    from dune_cli.training.distill.config import DistillConfig
    from dune_cli.training.distill.distiller import distill as train

    config = DistillConfig(
        teachers=(teacher,), data=(str(photos),), student=student, size_px=32, batch_size=4, steps=4,
        projector="sp", dtype="float32", checkpoint_minutes=0, held_out_fraction=0.0,
    )  # fmt: skip
    whole = train(config, tmp_path / "whole").student.state_dict()

    class Stop(Exception):
        pass

    save = checkpoints.RunState.save

    def stop_after_two(self, folder, step, ranks):
        save(self, folder, step, ranks)
        if step == 2:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.RunState, "save", stop_after_two)
        with pytest.raises(Stop):
            train(config, tmp_path / "parts")
    parts = train(config, tmp_path / "parts").student.state_dict()
    assert whole.keys() == parts.keys()
    assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []
