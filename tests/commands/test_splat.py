"""`dune splat` with stand-ins for the trainers: what they are given, and what becomes of what they write."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from dune_cli.cli import main
from dune_cli.io.colmap.write import write_colmap
from dune_cli.io.meshes import Frustum

NAMES = ("a.jpg", "sub/b.png")
STAND_IN = """#!{python}
import json, pathlib, sys
words = sys.argv[1:]
if "--help" in words:
    print("Usage: brush [PATH] {steps} <N> --export-path <DIR>")
    sys.exit()
given = dict(zip(words, words[1:]))
print("step 1", "step 2", "done", sep="\\n", flush=True)
if given.get("--seed") == "13":
    print("no graphics card", file=sys.stderr)
    sys.exit(3)
folder = pathlib.Path(given.get("--export-path") or given["--result-dir"] + "/ply")
folder.mkdir(parents=True, exist_ok=True)
names = "x y z f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
names = names[:3] if given.get("--seed") == "14" else names
header = ["ply", "format binary_little_endian 1.0", "element vertex 5", *("property float " + name for name in names)]
content = "\\n".join([*header, "end_header", ""]).encode() + bytes(4 * 5 * len(names))
if given.get("--seed") != "15":
    (folder / given.get("--export-name", "point_cloud_6.ply")).write_bytes(content)
"""


def write_script(path: Path, steps: str = "--total-train-iters") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STAND_IN.replace("{python}", sys.executable).replace("{steps}", steps))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An undistorted folder beside the JSON of its scene; nothing is on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    folder = tmp_path / "ready"
    K = np.array([[20.0, 0, 15.5], [0, 20.0, 11.5], [0, 0, 1]])
    for name in NAMES:
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24)).save(folder / "images" / name)
    write_colmap(folder / "sparse/0", [Frustum(K, np.eye(4), 32, 24, name) for name in NAMES], np.ones((7, 3)))
    (tmp_path / "scene.json").write_text(json.dumps({"schema": "dune.scene/1", "undistorted": {"folder": "ready"}}))
    (tmp_path / "old.json").write_text(json.dumps({"schema": "dune.scene/1"}))
    return folder


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["splat", *map(str, words)])


def test_without_a_trainer_it_says_what_to_install_and_that_the_folder_is_ready(ready: Path, tmp_path: Path) -> None:
    done = run(ready, "-o", tmp_path / "s.ply")
    assert done.exit_code == 4 and len(done.stderr.splitlines()) == 1
    assert f"{ready} is ready (2 images, 7 points): install Brush (https://github.com/" in done.stderr
    assert not (tmp_path / "s.ply").exists() and not (tmp_path / "s.log").exists()


@pytest.mark.parametrize("name, steps", [("brush", "--total-train-iters"), ("brush_app", "--total-steps")])
def test_brush_on_the_path(ready: Path, tmp_path: Path, name: str, steps: str) -> None:
    script = write_script(tmp_path / "bin" / name, steps)
    done = run(tmp_path / "scene.ply", "-o", tmp_path / "s.ply", "--steps", 70, "--seed", 2)
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [str(tmp_path / "s.ply"), str(tmp_path / "s.json")]
    document = json.loads((tmp_path / "s.json").read_text())
    assert document["schema"] == "dune.splat/1" and document["splats"] == 5 and document["steps"] == 70
    trainer = document["trainer"]
    assert (trainer["name"], trainer["executable"]) == ("brush", str(script))
    assert trainer["command"][:6] == [str(script), str(ready), steps, "70", "--seed", "2"]
    assert (tmp_path / "s.ply").read_bytes().startswith(b"ply") and "step 2" in (tmp_path / "s.log").read_text()
    assert not list(tmp_path.glob(".dune*"))


def test_gsplat_s_trainer(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = write_script(tmp_path / "simple_trainer.py")
    done = run(ready, "-o", tmp_path / "s.ply", "--trainer", script)
    assert done.exit_code == 4 and "pip install gsplat" in done.stderr
    (tmp_path / "packages" / "gsplat").mkdir(parents=True)
    (tmp_path / "packages" / "gsplat" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "packages")
    done = run(ready, "-o", tmp_path / "s.ply", "--trainer", script, "--steps", 7)
    assert done.exit_code == 0, done.output
    command = json.loads((tmp_path / "s.json").read_text())["trainer"]["command"]
    assert command[1:3] == [str(script), "default"] and command[command.index("--max-steps") + 1] == "7"
    assert command[command.index("--data-factor") + 1] == "1" and "--no-normalize-world-space" in command
    assert "gsplat is here, but its package has no trainer" in run(ready, "-o", tmp_path / "t.ply").stderr


@pytest.mark.parametrize(
    "seed, sentence", [(13, "ended with status 3"), (14, "without f_dc_0, opacity"), (15, "wrote no .ply")]
)
def test_a_trainer_that_fails(ready: Path, tmp_path: Path, seed: int, sentence: str) -> None:
    write_script(tmp_path / "bin" / "brush")
    done = run(ready, "-o", tmp_path / "s.ply", "--seed", seed)
    assert done.exit_code == 1 and sentence in done.stderr
    assert not any((tmp_path / name).exists() for name in ("s.ply", "s.json")) and not list(tmp_path.glob(".dune*"))
    assert seed != 13 or "which ends: step 2 | done | no graphics card" in done.stderr


def test_what_is_no_folder_or_trainer_is_refused(ready: Path, tmp_path: Path) -> None:
    K = np.eye(3)
    (tmp_path / "no_images").mkdir()
    (tmp_path / "other").write_text("#!/bin/sh\necho hello\n")
    (tmp_path / "other").chmod(0o755)
    for words, sentence in {
        ("none",): "no such folder or scene",
        (tmp_path / "old.ply",): "a scene without undistorted photos; reconstruct it with --undistort",
        (tmp_path / "no_images",): "has no folder images",
        (ready, "--trainer", "none.py"): "is no file",
        (ready, "--trainer", "none"): "is no program",
        (ready, "--trainer", tmp_path / "other"): "is no Brush that dune knows",
    }.items():
        done = run(*words, "-o", tmp_path / "s.ply")
        assert done.exit_code == 2 and sentence in done.stderr, done.stderr
    (ready / "images/a.jpg").unlink()
    assert "1 images of its model are missing, such as a.jpg" in run(ready, "-o", tmp_path / "s.ply").stderr
    bent = ready / "sparse/0/cameras.txt"
    for file in (ready / "sparse/0").iterdir():
        file.unlink()
    write_colmap(ready / "sparse/0", [Frustum(K, np.eye(4), 32, 24, "a.jpg")], binary=False)
    bent.write_text("1 SIMPLE_RADIAL 32 24 20 16 12 0.1\n")
    assert "have distortion (SIMPLE_RADIAL)" in run(ready, "-o", tmp_path / "s.ply").stderr
