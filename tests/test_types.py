"""The types of `from dune_cli import ...`: stubs that name what there is, and mypy (`pip install mypy`) over them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dune_cli
from support import ROOT

PACKAGE = ROOT / "dune_cli"
CHECKED = ("api.py", "progress.py", "config.py", "provenance.py", "errors.py")
USER = """
from pathlib import Path

import numpy as np
from dune_cli import classify, depth, encode, match, people, reconstruct, relocalize, segment
from dune_cli.progress import Progress


def told(one: Progress) -> None:
    print(one.step, one.done, one.total)


photo = np.zeros((8, 8, 3), np.uint8)
depth_map: np.ndarray = depth(photo, fov_deg=60, progress=told).depth
first: float = classify(Path("a.jpg"), top=1)[0].score
patches: np.ndarray = encode("a.jpg").patches
people("a.jpg", heights=[1.7]).save("people.obj")
points: np.ndarray = match("a.jpg", "b.jpg").points1
relocalize("a.jpg", "b.jpg").ref_from_query
reconstruct(["a.jpg", "b.jpg"], masks=["sky"], people=True).save("scene.glb", colmap="model/")
"""
WRONG = 'segment("a.jpg", size="large")\ndepth("a.jpg").classes\n'


def test_the_stubs_name_what_there_is() -> None:
    text = (PACKAGE / "__init__.pyi").read_text(encoding="utf-8")
    named = {name: module for module, name in re.findall(r"from dune_cli\.(\S+) import (\w+) as \2", text)}
    assert named == dune_cli._ENTRY_POINTS
    assert (PACKAGE / "py.typed").exists()


def test_mypy_finds_the_types_of_the_public_functions(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is for developers: pip install mypy")
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "wrong.py").write_text(USER + WRONG)
    files = [str(PACKAGE / name) for name in CHECKED] + [str(tmp_path / "user.py")]
    words = ["--follow-imports=silent", "--ignore-missing-imports", "--cache-dir", str(tmp_path / "cache")]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    for more, code in (([], 0), ([str(tmp_path / "wrong.py")], 1)):
        command = [sys.executable, "-m", "mypy", *words, *files, *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
        assert done.returncode == code, done.stdout
    assert 'incompatible type "str"' in done.stdout and 'no attribute "classes"' in done.stdout
