"""Scenes that are turned upright: by the gimbal, by edges that photos show, and what does not tell it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dune_cli.errors import JobFailed
from dune_cli.geometry import poses
from dune_cli.geometry.cameras import K_from_focal
from dune_cli.io.gps import Whereabouts, gimbal_rotation
from dune_cli.provenance import Source
from dune_cli.sfm import upright as module
from dune_cli.sfm.scene import Scene, SparsePoints, View
from dune_cli.sfm.upright import upright

WIDTH, HEIGHT = 320, 240
K = K_from_focal(300.0, WIDTH, HEIGHT)
PITCH_DEG = 18.0


def pose_of(number: int) -> np.ndarray:
    """`world_from_cam` in the world of the first camera, which looks down by PITCH_DEG."""
    level = poses.from_rotation_translation(
        poses.rotation_from_rotvec(np.radians([0, 4.0 * number, 0]))
        @ poses.rotation_from_rotvec(np.radians([-PITCH_DEG, 0, 0])),
        np.array([0.4 * number, 0, 0]),
    )
    first = poses.from_rotation_translation(poses.rotation_from_rotvec(np.radians([-PITCH_DEG, 0, 0])), np.zeros(3))
    return poses.inverse(first) @ level


def thrown_pose(rng: np.random.Generator) -> np.ndarray:
    return poses.from_rotation_translation(poses.rotation_from_rotvec(2 * rng.normal(size=3)), np.zeros(3))


def scene_of(count: int) -> Scene:
    views = [View(f"{n}.png", WIDTH, HEIGHT, K, "given", pose_of(n)) for n in range(count)]
    points = np.array([[0, 0, 4.0], [1, 0, 5], [0, 1, 6]])
    empty = (np.zeros(0, np.int64), np.zeros((0, 2)))
    sparse = SparsePoints(points, np.zeros((3, 3), np.uint8), np.ones(3), (empty,) * count)
    return Scene("matches", tuple(views), (), sparse, "arbitrary", None, 0.1, 9.0, (Source("sift"),))


def photos_of(folder: Path, count: int, posts: bool) -> list[Path]:
    """Photos of posts that stand upright, or of nothing."""
    up = poses.rotation_from_rotvec(np.radians([PITCH_DEG, 0, 0]))  # world of the first camera from the level one
    paths = []
    for number in range(count):
        picture = Image.new("L", (WIDTH, HEIGHT), 200)
        draw = ImageDraw.Draw(picture)
        for place in np.linspace(-1.6, 2.4, 9) if posts else ():
            foot = np.array([[place, low, 4 + 0.4 * place] for low in (1.9, 0.2)]) @ up.T
            in_cam = poses.transform_points(poses.inverse(pose_of(number)), foot)
            pixels = in_cam @ K.T
            a, b = pixels[:, :2] / pixels[:, 2:]
            draw.line([*map(float, a), *map(float, b)], fill=20, width=5)
        paths.append(folder / f"{number}.png")
        picture.convert("RGB").save(paths[-1])
    return paths


def pitch_of(scene: Scene) -> float:
    """Degrees that the first camera looks down."""
    return float(np.degrees(np.arcsin(scene.views[0].world_from_cam[1, 2])))


def test_posts_tell_the_pitch(tmp_path: Path) -> None:
    scene = upright(scene_of(4), photos_of(tmp_path, 4, True), seed=0)
    assert scene.gravity is not None and scene.gravity.source == "vertical edges"
    assert pitch_of(scene) == pytest.approx(PITCH_DEG, abs=0.5)
    assert "upright by" in scene.notes[-1] and "vertical edges" in scene.notes[-1]
    assert abs(scene.views[3].world_from_cam[1, 0]) < 0.01  # level


def test_the_gimbal_is_believed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Whereabouts(None, gimbal_rotation(90.0, -PITCH_DEG, 0.0))
    monkeypatch.setattr(module, "read_whereabouts", lambda path: given if path.name == "0.png" else Whereabouts())
    scene = upright(scene_of(3), photos_of(tmp_path, 3, False), seed=0)
    assert scene.gravity is not None and scene.gravity.source == "gimbal" and scene.gravity.photos == 1
    assert pitch_of(scene) == pytest.approx(PITCH_DEG, abs=1e-6)


def test_level_photos_leave_the_pitch_open_and_turned_ones_tell_nothing(tmp_path: Path) -> None:
    paths = photos_of(tmp_path, 4, False)
    scene = upright(scene_of(4), paths, seed=0)
    assert scene.gravity is not None and scene.gravity.sd_deg == 15.0
    assert "their pitch is taken to be 0" in scene.notes[-1] and "straight down" in scene.notes[-1]
    rng = np.random.default_rng(1)
    thrown = [replace(view, world_from_cam=thrown_pose(rng)) for view in scene_of(4).views]
    with pytest.raises(JobFailed, match="nothing tells what is down"):
        upright(replace(scene_of(4), views=tuple(thrown)), paths, seed=0)
