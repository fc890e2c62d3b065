"""`dune reconstruct` of several photos with a two-view model in the official layout."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from support.posed_sets import write_set
from support.published_files import Fixture, mast3r_tree

Dune = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
def test_three_photos_give_a_scene_or_one_sentence_and_keep_their_work(dune: Dune, tmp_path: Path) -> None:
    """Deterministic weights are noise, so the maps may agree or not; each photo is encoded once either way."""
    folder = write_set(tmp_path) / "made"
    photos = [folder / f"{view}.png" for view in range(3)]
    fixture = Fixture("mast3r_mini")
    torch.save(mast3r_tree(fixture.config["model"], fixture.state()), tmp_path / "mini.pth")
    words = ["--model", tmp_path / "mini.pth", "--size", "128", "--min-confidence", "1", "--no-dense"]
    done = dune("reconstruct", *photos, "-o", tmp_path / "scene.ply", *words)
    assert "3 photos, 3 pairs (all), each decoded in both orders" in done.stderr
    work = tmp_path / "scene.work"
    assert len(list((work / "two-view tokens").rglob("*.safetensors"))) == 3
    assert len(list((work / "two-view maps").rglob("*.safetensors"))) == 6
    if done.returncode == 0:
        assert (tmp_path / "scene.ply").exists() and (tmp_path / "scene.json").exists()
        return
    assert done.returncode == 1, done.stderr
    assert not (tmp_path / "scene.ply").exists()
    assert [line.startswith("dune: ") for line in done.stderr.splitlines()].count(True) == 1
