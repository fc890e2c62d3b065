"""`dune doctor`: real imports, each failure with its cure, exit code 1 only when a weight-free verb cannot work."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dune_cli import doctor
from dune_cli.checkpoints import weights_folder
from dune_cli.cli import main

Dune = Callable[..., subprocess.CompletedProcess[str]]
HEAVY = ("torch", "timm", "open3d", "smplx", "pycolmap", "trimesh", "cv2", "safetensors", "libusb_package")


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty modules in place of the heavy packages, for processes that are started."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    for name in HEAVY:
        (folder / f"{name}.py").write_text("")
    (folder / "libusb_package.py").write_text("def get_library_path(): return None")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(Path(__file__).parents[2])]))
    return folder


def package(facts: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in facts["packages"] if entry["package"] == name)


@pytest.mark.slow
def test_everything_on_this_machine(dune_process: Dune) -> None:
    """The test extra installs all that the weight-free verbs need."""
    run = dune_process("doctor", "--json")
    facts = json.loads(run.stdout)
    assert run.returncode == 0 and facts["ok"], run.stderr
    assert facts["schema"] == "dune.doctor/1"
    for name in ("click", "numpy", "torch", "opencv-python", "pillow", "pycolmap", "trimesh", "tqdm", "safetensors"):
        assert package(facts, name)["ok"] and package(facts, name)["version"], name
    assert facts["devices"]["auto"]["device"] in ("cpu", "mps") or facts["devices"]["auto"]["device"].startswith("cuda")
    assert facts["devices"]["cpu"]["cores"] >= 1 and facts["devices"]["torch_threads"] >= 1
    for name in ("sift", "xfeat-lighterglue"):
        assert {"name": name, "ready": True, "why": "", "cure": ""} in facts["matchers"]["list"]
    assert {"xfeat-lighterglue-bundled"} <= {entry["name"] for entry in facts["weights"]["present"]}
    assert facts["weights"]["folder"] == str(weights_folder.weights_folder()) and facts["weights"]["writable"]


def test_a_broken_opencv_fails_the_verbs_that_need_it(dune: Dune, fakes: Path) -> None:
    (fakes / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    run = dune("doctor", "--json")
    facts = json.loads(run.stdout)
    assert run.returncode == 1
    assert "reconstruct (needs opencv-python)" in run.stderr and len(run.stderr.splitlines()) == 1
    assert "libGL.so.1" in package(facts, "opencv-python")["error"]
    assert package(facts, "opencv-python")["cure"] == "pip install --force-reinstall opencv-python"
    verdicts = {verb["verb"]: verb["ok"] for verb in facts["verbs"]}
    assert not verdicts["reconstruct"] and not verdicts["eval"] and verdicts["weights"]


def test_open3d_without_libusb_is_named_with_its_cure_and_fails_no_verb(fakes: Path) -> None:
    (fakes / "open3d.py").write_text("raise OSError('libusb-1.0.so.0: cannot open shared object file')")
    facts = doctor.examine({"reconstruct": ("numpy", "torch")})
    assert "pip install libusb-package" in package(facts, "open3d")["cure"]
    assert not any("open3d" in (verb["why"] or "") for verb in facts["verbs"])


def test_what_kills_or_blocks_the_interpreter_does_not_stop_the_rest(fakes: Path) -> None:
    (fakes / "kills.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    (fakes / "leaves.py").write_text("import os, sys; print('bye', file=sys.stderr, flush=True); os._exit(3)")
    (fakes / "hangs.py").write_text("import time; time.sleep(60)")
    (fakes / "talks.py").write_text("import os; print('a banner'); os.system('echo another')")
    items = [f"package:{name}" for name in ("click", "kills", "leaves", "hangs", "talks")]
    answers = doctor.ask(items, timeout_seconds=3)
    assert list(answers) == items
    assert {item: answer["ok"] for item, answer in answers.items()} == {
        item: item in ("package:click", "package:talks") for item in items
    }
    assert answers["package:kills"]["error"] == "crashes the interpreter (SIGSEGV)"
    assert answers["package:leaves"]["error"] == "ends the interpreter (bye)"
    assert answers["package:hangs"]["error"] == "no answer within 3 s"


def test_a_broken_torch_leaves_the_devices_unknown(dune: Dune, fakes: Path) -> None:
    (fakes / "torch.py").write_text("raise OSError('libcudart.so: cannot open shared object file')")
    run = dune("doctor")
    assert run.returncode == 1 and "needs torch" in run.stderr
    assert "libcudart.so" in run.stdout and "Traceback" not in run.stdout + run.stderr


def test_probe_answers_in_this_process_too() -> None:
    assert doctor.probe("package:click")["ok"]
    assert "not installed" in doctor.probe("package:no_such_module")["error"]
    assert doctor.probe("verb:dune_cli.no_such_verb") == {
        "ok": False,
        "error": "ModuleNotFoundError: No module named 'dune_cli.no_such_verb'",
    }


def test_present_weights_and_a_damaged_lock_file_are_shown(tmp_path: Path) -> None:
    home = weights_folder.weights_folder()
    (home / "dune_vitsmall14_448.pth").write_bytes(b"x")
    (home / "lock.json").write_text("{")
    facts = doctor.weights_facts()
    found = [entry for entry in facts["present"] if entry["name"] == "dune-vits14-448"]
    assert found == [
        {"name": "dune-vits14-448", "path": str(home / "dune_vitsmall14_448.pth"), "origin": "weights folder"}
    ]
    assert "is damaged" in facts["lock"] and facts["offline"]


def test_a_weights_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUNE_WEIGHTS", "/proc/dune")
    facts = doctor.weights_facts()
    assert not facts["writable"] and "set DUNE_WEIGHTS" in facts["why"]


def test_the_text_says_what_the_facts_say(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {
        "ok": False,
        "versions": {"dune": "1", "python": "3", "platform": "here"},
        "packages": [
            {
                "package": name,
                "version": version,
                "ok": False,
                "installed": version is not None,
                "optional": optional,
                "purpose": "p",
                "without": "less works",
                "error": f"{name} fails",
                "cure": f"pip install {name}",
                "needed_by": [],
            }
            for name, version, optional in (("a", None, False), ("b", "2", False), ("c", None, True))
        ],
        "devices": {
            "ok": True,
            "cpu": {"name": "N", "cores": 2, "flags": ["avx2"], "fast_bfloat16": False},
            "torch_threads": 2,
            "cuda": [{"name": "GPU", "memory_bytes": 8 * 10**9, "bfloat16": True}],
            "mps": False,
            "auto": {"device": "cuda", "dtype": "bfloat16"},
        },
        "weights": {
            "folder": "/w",
            "exists": False,
            "writable": True,
            "why": None,
            "free_bytes": 10**10,
            "offline": False,
            "lock": None,
            "present": [],
        },
        "matchers": {"error": None, "list": [{"name": "m", "ready": False, "why": "no kornia", "cure": "pip it"}]},
        "verbs": [{"verb": "eval", "ok": False, "why": "needs a"}],
    }
    monkeypatch.setattr(doctor, "examine", lambda verbs, import_all: facts)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    for text in (
        "missing  a",
        "without it: less works",
        "run: pip install a",
        "broken   b",
        "b fails",
        "not here c",
        "cuda:0   GPU, 8.0 GB, bfloat16",
        "bfloat16 slow",
        "/w (made when needed), 10.0 GB free",
        "no kornia; cure: pip it",
        "broken   eval",
    ):
        assert text in result.stdout, text
    assert "cannot work on this machine: eval (needs a)" in result.stderr


def test_help_is_quick_and_has_an_example(dune: Dune) -> None:
    run = dune("doctor", "--help")
    assert run.returncode == 0 and "Example: dune doctor" in run.stdout
