"""`dune reconstruct --people`: its files, metres by a height, a scene without people, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dune_cli.bodies.found_joints import FoundJoints
from dune_cli.bodies.registry import load_anny
from dune_cli.bodies.skeleton import INDEX, AnnySkeleton
from dune_cli.cli import main
from dune_cli.geometry import cameras
from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.models.people_poses import BLAZEPOSE_NAMES
from dune_cli.tasks.reconstruct import people
from support.anny_poses import posed_people
from support.two_photos import INTRINSICS, POSES, K, write_photos

pytestmark = pytest.mark.usefixtures("quick_sift")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photos(tmp_path_factory.mktemp("photos"))


def reconstruct(photos: list[Path], target: Path, *more: str) -> dict[str, object]:
    words = ["reconstruct", *map(str, photos), "-o", str(target), "--matcher", "sift", "--intrinsics", INTRINSICS]
    done = CliRunner().invoke(main, [*words, "--people", *more], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(target.with_suffix(".json").read_text()) | {"stderr": done.stderr}


def test_somebody_of_a_known_height(photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The joints are given, the scene is real: the camera's step comes out in metres."""
    posed = posed_people(AnnySkeleton(load_anny("light")), 1, seed=8)
    own = [INDEX.get(name, INDEX["nose"]) for name in BLAZEPOSE_NAMES]
    known = np.array([[float(name in INDEX) for name in BLAZEPOSE_NAMES]])
    views = iter(POSES)

    def find(network: object, rgb: np.ndarray) -> FoundJoints:
        points = transform_points(inverse(next(views)), posed.landmarks)[:, own]
        return FoundJoints(np.ones(1), np.ones(1), cameras.project(points, K), known, known, points)

    monkeypatch.setattr(people, "find_in_photo", find)
    scene = reconstruct(photos, tmp_path / "scene.ply", "--height", f"{posed.stature[0]:.3f}")
    assert scene["scale"] == "metric" and "given" in scene["scale_note"] and scene["assumed_height"]["given"]
    step = np.linalg.norm(np.array(scene["cameras"][1]["world_from_cam"])[:3, 3])
    assert step == pytest.approx(np.linalg.norm(POSES[1][:3, 3]), rel=0.05)
    (person,) = scene["people"]
    assert person["placed_by"] == "views" and person["mesh"] == "scene-people.obj#person_000"
    assert [view["image"] for view in person["views"]] == ["one.png", "two.png"]
    assert np.linalg.norm(np.array(person["translation"]) - posed.translation[0]) < 0.25
    assert {model["name"] for model in scene["provenance"]["models"]} >= {"dune-people", "anny"}
    assert "1 person, 1 of them in several views" in scene["stderr"]
    text = (tmp_path / "scene-people.obj").read_text()
    assert text.count("\ng person_000") == 1


def test_nobody(photos: list[Path], tmp_path: Path) -> None:
    """By the real networks."""
    scene = reconstruct(photos, tmp_path / "scene.glb", "--no-dense")
    assert scene["people"] == [] and scene["people_scale"] is None and scene["scale"] == "arbitrary"
    assert "nobody was found" in scene["stderr"]
    assert not (tmp_path / "scene-people.obj").exists()


def test_what_is_refused(photos: list[Path], tmp_path: Path) -> None:
    words = ["reconstruct", *map(str, photos), "-o", str(tmp_path / "scene.ply")]
    done = CliRunner().invoke(main, [*words, "--height", "1.8"])
    assert done.exit_code == 2 and "--height 1.8 is that of the people of --people" in done.stderr
    done = CliRunner().invoke(main, [*words, "--people", "--height", "3"])
    assert done.exit_code == 2 and "--height" in done.stderr
    (tmp_path / "scene-people.obj").write_text("mine")
    done = CliRunner().invoke(main, [*words, "--people"])
    assert done.exit_code == 2 and "scene-people.obj exists already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["scene-people.obj"]
