"""The example of docs/conventions.md, "From Python", runs on small photos with the models that come with dune (sift
matches; the people's lines are left out, which take ten seconds)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from dune_cli import api
from dune_cli.matchers.registry import load_matcher
from support import ROOT

PHOTOS = ROOT / "examples" / "photos"


def example() -> str:
    text = (ROOT / "docs" / "conventions.md").read_text(encoding="utf-8").partition("\n## From Python\n")[2]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]


@pytest.mark.usefixtures("quick_sift")
def test_the_example_of_the_docs_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = {"photo.jpg": "astronaut.png", "left.jpg": "motorcycle_left.png", "right.jpg": "motorcycle_right.png"}
    (tmp_path / "photos").mkdir()
    for name, source in {**sides, "query.jpg": sides["right.jpg"], "reference.jpg": sides["left.jpg"]}.items():
        photo = Image.open(PHOTOS / source).convert("RGB")
        photo.thumbnail((320, 320) if name != "photo.jpg" else (200, 200))
        photo.save(tmp_path / name, quality=95)
    for name in ("left.jpg", "right.jpg"):
        (tmp_path / "photos" / name).write_bytes((tmp_path / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "load_matcher", lambda name, device: load_matcher("sift"))
    lines = [line for line in example().splitlines() if "people" not in line or "import" in line]  # see test_api.py
    assert len(lines) > 7
    exec(compile("\n".join(lines), "conventions.md", "exec"), {})
    assert {"depth.png", "scene.ply", "model"} <= {path.name for path in tmp_path.iterdir()}
    assert "Progress(step=" in capsys.readouterr().out
