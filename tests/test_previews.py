"""Previews: a small picture of every kind of result, and where the commands put it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dune_cli import previews
from dune_cli.commands.preview import PreviewedOutput
from dune_cli.io.photos import Photo
from dune_cli.tasks.depth import Depth
from dune_cli.tasks.human import PhotoPeople
from support.command_line import run

GREY = Photo(Path("a.png"), np.full((60, 80, 3), 100, np.uint8), "0")
K = np.array([[80.0, 0, 39.5], [0, 80, 29.5], [0, 0, 1]])


def test_a_depth_is_in_colours_and_no_larger_than_a_preview(monkeypatch: pytest.MonkeyPatch) -> None:
    depth = np.linspace(1, 3, 60 * 80, dtype=np.float32).reshape(60, 80)
    result = Depth(GREY, depth, None, K, "given", np.eye(3), (80, 60))
    assert previews.picture(result).shape == (60, 80, 3)
    monkeypatch.setattr(previews, "LONG_SIDE_PX", 40)
    shown = previews.picture(result)
    assert shown.shape == (30, 40, 3) and shown[0, 0, 0] > shown[0, 0, 2]  # near: red of turbo
    with pytest.raises(TypeError, match="no picture is known of a str"):
        previews.picture("classes")


def test_people_lie_over_their_photo() -> None:
    from dune_cli.io.meshes import Mesh

    square = Mesh(np.array([[0.0, 0, 4], [1, 0, 4], [1, 1, 4], [0, 1, 4]]), np.array([[0, 1, 2], [0, 2, 3]]))
    found = PhotoPeople.__new__(PhotoPeople)
    object.__setattr__(found, "photo", GREY)
    object.__setattr__(found, "K", K)
    shown = previews.picture(found, [square])
    assert (shown[10, 10] == 100).all() and (shown[35, 45] != 100).any()


def matches(points1: np.ndarray, points2: np.ndarray, pose: np.ndarray | None) -> tuple[Any, Any]:
    image = SimpleNamespace(photo=GREY, K=K)
    found = SimpleNamespace(reference=image, query=image, query_from_ref=pose)
    pairs = SimpleNamespace(points1=points1, points2=points2)
    return SimpleNamespace(matches=pairs, reference=image, query=image, pixel_sizes_px=(1.0, 1.0)), found


def test_matches_are_green_where_they_agree_with_the_pose() -> None:
    pose = np.eye(4)
    pose[0, 3] = 1  # the camera moves along x: matches keep their row
    start = np.array([[20.0, 20.0], [20.0, 40.0]])
    end = np.array([[40.0, 20.0], [40.0, 55.0]])
    shown = previews.match_picture(*matches(start, end, pose))
    assert shown.shape == (60, 168, 3)
    assert tuple(shown[20, 60]) == previews.AGREEING
    colours = {tuple(int(value) for value in row) for row in shown.reshape(-1, 3)}
    assert previews.OTHER in colours
    without = previews.match_picture(*matches(start, end, None))
    assert previews.AGREEING not in {tuple(int(value) for value in row) for row in without.reshape(-1, 3)}
    assert np.array_equal(previews.match_picture(None, matches(start, end, None)[1])[:, :80], GREY.rgb)


def test_a_preview_is_the_default_of_folders(tmp_path: Path) -> None:
    def wants(output: str | None, preview: bool | None = None, pictured: bool = False) -> bool:
        return PreviewedOutput(output=output, preview=preview).wants_preview(".png", pictured=pictured)

    folder = tmp_path / "a.png"
    folder.mkdir()
    assert wants("out") and wants(str(folder)) and not wants("out.png") and not wants(None)
    assert wants("out.png", True) and not wants("out", False)
    assert not wants("out", pictured=True) and wants("out", True, pictured=True)


def test_commands_write_previews_beside_results(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(tmp_path / "a.png")
    words = ("encode", tmp_path / "a.png", "--size", 42, "--quiet", "-o")
    assert run(*words, tmp_path / "one").returncode == 0
    names = {file.name for file in (tmp_path / "one").iterdir()}
    assert names == {"a.npz", "a.json", "a_preview.png"}
    assert json.loads((tmp_path / "one/a.json").read_text())["preview"] == "a_preview.png"
    assert Image.open(tmp_path / "one/a_preview.png").size == (64, 48)
    assert run(*words, tmp_path / "two", "--no-preview").returncode == 0
    assert run(*words, tmp_path / "three.npz").returncode == 0
    assert not list(tmp_path.glob("two/*preview*")) and not (tmp_path / "three_preview.png").exists()
    done = run(*words, tmp_path / "one/a.npz", "--preview")
    assert done.returncode == 2 and "exists already" in done.stderr
    done = run("reloc", tmp_path / "a.png", tmp_path / "a.png", "--preview")
    assert done.returncode == 2 and "name one, such as -o pose.json" in done.stderr
