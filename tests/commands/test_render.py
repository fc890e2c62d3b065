"""`dune render`: pictures and videos of results, framed by their first camera or their extent."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image

from dune_cli.commands import render
from dune_cli.io.formats.glb import write_glb
from dune_cli.io.formats.obj import write_obj
from dune_cli.io.formats.ply import write_ply, write_ply_mesh
from dune_cli.io.meshes import Frustum, Mesh
from dune_cli.io.scene_colors import COLORINGS
from dune_cli.io.video import frames
from support.command_line import run

Dune = Callable[..., "CompletedProcess[str]"]
K = np.array([[40.0, 0, 19.5], [0, 40, 14.5], [0, 0, 1]])
CAMERA = Frustum(K, np.eye(4), 40, 30, "a.png")
SIZE = ("--size", "80,60")


@pytest.fixture
def quad() -> Mesh:
    corners = np.array([[-1.0, -1, 4], [1, -1, 4], [1, 1, 4], [-1, 1, 5]])
    return Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]), np.uint8([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]))


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_every_format_shows_the_same(quad: Mesh, tmp_path: Path) -> None:
    write_glb(tmp_path / "s.glb", [quad])
    write_obj(tmp_path / "s.obj", [quad])
    write_ply_mesh(tmp_path / "s.ply", [quad])
    pictures = []
    for ending in ("glb", "obj", "ply"):
        target = tmp_path / f"{ending}.png"
        done = run("render", tmp_path / f"s.{ending}", "-o", target, *SIZE, "--azimuth-deg", 15)
        assert (done.returncode, done.stdout) == (0, f"{target}\n"), done.stderr
        pictures.append(picture(target))
        assert (pictures[-1] != 255).any(-1).mean() > 0.05
    for other in pictures[1:]:
        assert np.abs(other - pictures[0]).mean() < 1


def test_it_is_framed_by_the_first_camera(quad: Mesh, tmp_path: Path) -> None:
    write_glb(tmp_path / "s.glb", [quad], cameras=[CAMERA])
    done = run("render", tmp_path / "s.glb", "-o", tmp_path / "p.png", *SIZE, "--json")
    document = json.loads(done.stdout)
    assert document["framed_by"] == "camera a.png" and document["triangles"] == 2 and document["frames"] == 1
    assert document["K"][0][0] == 80 and document["world_from_cam"] == np.eye(4).tolist()
    columns = np.flatnonzero((picture(tmp_path / "p.png")[30] != 255).any(-1))
    assert columns.min() == pytest.approx(40 - 80 / 4.5, abs=2) and columns.max() == pytest.approx(40 + 20, abs=2)
    run("render", tmp_path / "s.glb", "-o", tmp_path / "d.png")
    assert picture(tmp_path / "d.png").shape == (720, 960, 3)
    write_obj(tmp_path / "s.obj", [quad])
    done = run("render", tmp_path / "s.obj", "-o", tmp_path / "p2.png", *SIZE, "--json")
    assert json.loads(done.stdout)["framed_by"] == "extent"


def test_a_video_turns_about_the_scene(quad: Mesh, tmp_path: Path) -> None:
    write_glb(tmp_path / "s.glb", [quad], cameras=[CAMERA])
    words = ("--seconds", 0.4, "--fps", 10, "--orbit-deg", 40, "--background", "#000000")
    done = run("render", tmp_path / "s.glb", "-o", tmp_path / "o.mp4", *SIZE, *words, "--json")
    assert json.loads(done.stdout)["frames"] == 4
    read = [frame.rgb.astype(int) for frame in frames(tmp_path / "o.mp4")]
    assert len(read) == 4 and read[0].shape == (60, 80, 3) and read[0][0, 0].max() < 20
    assert np.abs(read[1] - read[3]).mean() > 2 * np.abs(read[0] - read[2]).mean()  # MPEG-4 is lossy
    done = run("render", tmp_path / "s.glb", "-o", tmp_path / "o.gif", *SIZE, *words)
    assert Image.open(tmp_path / "o.gif").n_frames >= 3, done.stderr


def test_points_and_colours(tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform([-1, -1, 3], [1, 1, 4], (500, 3))
    write_ply(tmp_path / "c.ply", points, np.full((500, 3), (9, 200, 9), np.uint8), np.arange(500.0))
    assert render.COLORINGS == COLORINGS
    run("render", tmp_path / "c.ply", "-o", tmp_path / "own.png", *SIZE, "--background", "black")
    own = picture(tmp_path / "own.png")
    assert own[..., 1].max() == 200 and own[..., 0].max() == 9 and (own[..., 1] > 100).mean() > 0.2
    run("render", tmp_path / "c.ply", "-o", tmp_path / "sure.png", *SIZE, "--color-by", "confidence")
    assert len(np.unique(picture(tmp_path / "sure.png").reshape(-1, 3), axis=0)) > 50
    done = run("render", tmp_path / "c.ply", "-o", tmp_path / "n.png", *SIZE, "--color-by", "normal")
    assert done.returncode == 2 and "allowed here: color, height, confidence" in done.stderr


@pytest.mark.parametrize(
    "words, message",
    [
        (("missing.ply", "-o", "p.png"), "no such file or folder"),
        (("a.stl", "-o", "p.png"), "ending .stl"),
        (("", "-o", "p.png"), "an input is an empty string"),
        (("pipe.ply", "-o", "p.png"), "pipe.ply is no regular file"),
        (("far.ply", "-o", "p.png"), "beyond 1e+12"),
        (("s.obj", "-o", "p.mp4", "--fps", "1e9"), "at most 240 frames a second"),
        (("empty.ply", "-o", "p.png"), "neither points nor triangles"),
        ((".", "-o", "p.png"), "3 results lie in what was named"),
        (("s.obj", "-o", "p.jpg"), "allowed: .png .mp4 .webm .gif"),
        (("s.obj", "-o", "p.png", "--size", "80"), "width,height of 16 to 8192 pixels"),
        (("s.obj", "-o", "p.mp4", "--size", "81,60"), "even numbers"),
        (("s.obj", "-o", "p.png", "--background", "reddish"), "is no colour"),
    ],
)
def test_mistakes_are_one_sentence(words: tuple[str, ...], message: str, quad: Mesh, tmp_path: Path) -> None:
    write_obj(tmp_path / "s.obj", [quad])
    write_ply(tmp_path / "empty.ply", np.zeros((0, 3)))
    write_ply(tmp_path / "far.ply", np.full((3, 3), 1e38))
    (tmp_path / "a.stl").touch()
    os.mkfifo(tmp_path / "pipe.ply")
    done = run("render", *(tmp_path / word if "." in word and "-" not in word else word for word in words))
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("p.*"))
