"""People placed in a scene: what the files say of them, lenses, metres, points on bodies, and scenes without people."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import trimesh

from dune_cli.bodies.found_joints import FoundJoints
from dune_cli.bodies.registry import load_anny
from dune_cli.bodies.skeleton import INDEX, AnnySkeleton
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import project
from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.io.json_files import dumps
from dune_cli.models.people_poses import BLAZEPOSE_NAMES
from dune_cli.provenance import Run, Source
from dune_cli.sfm.scene import Scene, SparsePoints, View
from dune_cli.tasks.reconstruct import export, people, people_files
from dune_cli.tasks.reconstruct.people import PeopleInScene, add_people
from support.anny_poses import K, PosedPeople, posed_people
from support.people_views import ring

NETWORK = SimpleNamespace(source=Source("joints"))
OWN = [INDEX.get(name, INDEX["nose"]) for name in BLAZEPOSE_NAMES]
KNOWN = np.array([float(name in INDEX) for name in BLAZEPOSE_NAMES])
LENS = Camera.brown(K, (-0.12, 0.03), 640, 480)
Found = Callable[..., tuple[Scene, PeopleInScene]]


@pytest.fixture(scope="module")
def two() -> PosedPeople:
    return posed_people(AnnySkeleton(load_anny("light")), 2, seed=4)


def scene_of(cam_from_world: np.ndarray, unit_m: float, lens: Camera | None = None) -> Scene:
    """Registered views in a scene of unknown scale, an unregistered one, and one far point."""
    views = []
    for number, pose in enumerate(inverse(cam_from_world)):
        pose[:3, 3] /= unit_m
        views.append(View(f"{number}.jpg", 640, 480, K, "given", pose, lens=lens))
    views.append(View("lost.jpg", 640, 480, K, "given", np.full((4, 4), np.nan), registered=False, reason="no match"))
    point = np.array([[0.0, 0, 50.0]]) / unit_m
    none = np.zeros(0, np.int64), np.zeros((0, 2))
    sparse = SparsePoints(point, np.zeros((1, 3), np.uint8), np.ones(1, np.float32), (none,) * len(views))
    return Scene("matches", tuple(views), (), sparse, "arbitrary", "why", 0.5, 3.0, (Source("sift"),))


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch, two: PosedPeople) -> Found:
    """Runs `add_people` on a scene whose photos show these people, by the true cameras in metres."""

    def run(
        scene: Scene, cam_from_world: np.ndarray, bodies: PosedPeople = two, only: dict[int, list[int]] | None = None
    ) -> tuple[Scene, PeopleInScene]:
        def find(network: object, number: int) -> FoundJoints:
            who = list(range(len(bodies.stature))) if only is None else only[number]
            points = transform_points(cam_from_world[number], bodies.landmarks[who])
            pixels = scene.views[number].camera.distort(project(points, K))[:, OWN]
            ones = np.ones((len(who), 33))
            world = points[:, OWN]
            return FoundJoints(ones[:, 0], ones[:, 0], pixels, ones * KNOWN, ones * KNOWN, world)

        monkeypatch.setattr(people, "read_photo", lambda path: SimpleNamespace(rgb=int(path.stem)))
        monkeypatch.setattr(people, "find_in_photo", find)
        paths = [Path(view.image) for view in scene.views]
        return add_people(scene, paths, NETWORK, None, Run(seed=0))

    return run


def test_a_scene_gets_metres_and_files(found: Found, two: PosedPeople, tmp_path: Path) -> None:
    poses = ring(0, 35, -45)
    scene, told = found(scene_of(poses, 0.25, LENS), poses)
    assert len(told.people) == 2 and scene.scale == "metric"
    assert "2 people (assumed: adults of 1.70 m, deviation 0.09 m), to about 5%" in scene.scale_note
    assert [source.name for source in scene.sources] == ["sift", "joints", "anny"]
    for number, person in enumerate(told.people):
        assert person.placed_by == "views" and [one.view for one in person.sightings] == [0, 1, 2]
        assert all(one.used and one.residual_px < 2 for one in person.sightings)
        assert np.linalg.norm(person.body.translation - two.translation[number]) < 0.35
        assert person.body.size == pytest.approx(1)
        assert np.allclose(person.body.joints3d[0], person.body.translation)

    # GLB without a surface: points, cameras and people; the JSON says who is who
    glb = tmp_path / "scene.glb"
    assert people_files.people_file(glb) == glb
    points, mesh = export.write_scene(scene, glb, people=people_files.people_meshes(told, glb))
    document = export.scene_json(scene, points, mesh, {}, people_files.people_json(told, scene, glb))
    document = json.loads(dumps(document))
    assert document["scale"] == "metric" and document["people_scale"]["people"] == 2
    assert document["people_scale"]["metres_per_unit"] == pytest.approx(0.25, rel=0.1)
    assert document["assumed_height"] == {"mean": 1.7, "sd": 0.09, "given": False}
    first = document["people"][0]
    assert first["mesh"] == "scene.glb#person_000" and len(first["views"]) == 3
    assert first["views"][1]["image"] == "1.jpg" and first["views"][1]["camera"] == 1
    assert len(first["rotvec"]) == len(document["body_model"]["joints"]) == len(first["joints3d"])
    names = {name for name in trimesh.load_scene(glb).geometry if name.startswith("person")}
    assert names == {"person_000", "person_001"}

    # PLY: an OBJ beside it, in the same axes
    beside = people_files.people_file(tmp_path / "scene.ply")
    assert beside.name == "scene-people.obj"
    people_files.write_people(people_files.people_meshes(told, beside), scene, beside)
    text = beside.read_text()
    assert "g person_000" in text and "g person_001" in text
    height = np.ptp(trimesh.load_mesh(beside, process=False).vertices[:, 1])
    assert 1.0 < height < 2.6


def test_one_view_each_and_points_on_the_body(found: Found, two: PosedPeople) -> None:
    """Nobody is seen twice: without points on the bodies nothing tells their place; with them they have one."""
    poses = ring(0, 35)
    only = {0: [0], 1: [1]}
    unit = 0.5
    bare = scene_of(poses, unit)
    scene, told = found(bare, poses, only=only)
    assert scene.scale == "arbitrary" and told.scale is None and [one.body for one in told.people] == [None, None]
    assert any("nobody could be placed" in note for note in told.notes)
    document = json.loads(dumps(people_files.people_json(told, scene, None)))
    assert [one["translation"] for one in document["people"]] == [None, None] and document["people_scale"] is None
    assert people_files.people_meshes(told, Path("scene.glb")) == []

    rng = np.random.default_rng(0)
    chest = [INDEX[f"{side}_{part}"] for side in ("left", "right") for part in ("shoulder", "hip")]
    corners = two.landmarks[0, chest]
    points = rng.dirichlet(np.ones(4), 60) @ corners
    pixels = project(points, K)
    observed = ((np.arange(60), pixels), *((np.zeros(0, np.int64), np.zeros((0, 2))),) * 2)
    sparse = SparsePoints(points / unit, np.zeros((60, 3), np.uint8), np.ones(60, np.float32), observed)
    scene, told = found(replace(bare, sparse=sparse), poses, only=only)
    assert [one.placed_by for one in told.people] == ["points", "height"]
    assert told.scale.metres_per_unit == pytest.approx(unit, rel=0.12) and told.scale.people == 1
    assert scene.scale == "metric" and len(told.people[1].sightings) == 1
    for number, person in enumerate(told.people):
        assert np.linalg.norm(person.body.translation - two.translation[number]) < 0.12 * two.translation[number, 2]


def test_the_world_of_given_poses_stays(found: Found) -> None:
    poses = ring(0, 35)
    given = replace(scene_of(poses, 0.5), world="that of --poses", world_offset=np.array([4e5, 5e6, 0]))
    scene, told = found(given, poses)
    assert scene.scale == "arbitrary" and "one unit is 0." in scene.scale_note
    assert np.array_equal(scene.views[1].world_from_cam, given.views[1].world_from_cam)
    body = told.people[0].body
    assert body.size == pytest.approx(1 / told.scale.metres_per_unit)
    document = json.loads(dumps(people_files.people_json(told, scene, None)))
    assert document["people"][0]["translation"][1] == pytest.approx(5e6 + body.translation[1], abs=1e-3)


def test_metres_are_kept_and_doubted(found: Found, two: PosedPeople) -> None:
    poses = ring(0, 35)
    scene, told = found(replace(scene_of(poses, 1.0), scale="metric", scale_note=None), poses)
    assert scene.scale_note is None and told.scale.metres_per_unit == pytest.approx(1, rel=0.1)
    for number, person in enumerate(told.people):
        assert np.linalg.norm(person.body.translation - two.translation[number]) < 0.06
    assert len(told.notes) == 1
    wrong = replace(scene_of(poses, 0.6), scale="metric", scale_note=None)
    _, told = found(wrong, poses)
    assert any("multiplied by 0.6" in note or "multiplied by 0.5" in note for note in told.notes)


def test_a_scene_without_people(found: Found) -> None:
    poses = ring(0, 35)
    scene, told = found(scene_of(poses, 0.5), poses, only={0: [], 1: []})
    assert told.people == () and scene.scale == "arbitrary"
    assert told.notes == ("--people: nobody was found in the photos",)
    assert people_files.people_json(told, scene, None)["people"] == []
