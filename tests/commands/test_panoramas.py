"""Panoramas of the whole sphere from one end to the other: rendered in a room, alone and beside photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from click.testing import CliRunner, Result

from dune_cli.cli import main
from dune_cli.evaluation.metrics import camera_errors, extent, fit_cameras
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.poses import rotation_angle, vector_angle
from dune_cli.geometry.sim3 import move_poses
from dune_cli.io.png import save_png
from dune_cli.io.pose_files import read_known_cameras
from support import rendered_rooms as room

SPHERE = Camera.sphere(400, 200)
PHOTO = Camera("PINHOLE", (170.0, 170.0, 119.5, 89.5), 240, 180)
PANORAMAS = range(4)
PHOTOS = (0.5, 1.6)  # between the panoramas


@pytest.fixture(autouse=True)
def _quick_sift(monkeypatch: pytest.MonkeyPatch) -> None:
    from dune_cli.matchers import sift

    monkeypatch.setattr(sift, "build", lambda *_: sift.Sift(320, 900))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tagged panoramas, and photos; what is computed of them is kept between the tests."""
    folder = tmp_path_factory.mktemp("room")
    for index in PANORAMAS:
        room.write_panorama(folder / "all" / f"pano{index}.jpg", room.render(SPHERE, room.place(index), 1))
    for number, index in enumerate(PHOTOS):
        save_png(folder / "all" / f"photo{number}.png", room.render(PHOTO, room.place(index), 1))
    return folder


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result


def true_poses() -> dict[str, np.ndarray]:
    poses = {f"pano{index}.jpg": room.place(index) for index in PANORAMAS}
    return poses | {f"photo{number}.png": room.place(index) for number, index in enumerate(PHOTOS)}


def errors(cameras: dict[str, np.ndarray]) -> tuple[float, float]:
    """The largest error of a rotation in degrees, and of a centre in percent of the cameras' extent."""
    true = np.stack([true_poses()[name] for name in cameras])
    found = camera_errors(true, np.stack(list(cameras.values())))
    return float(np.max(found.rotation_deg)), 100 * float(np.max(found.centre)) / extent(true)


def spheres(cameras: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of the panoramas."""
    return {name: pose for name, pose in cameras.items() if name.startswith("pano")}


@pytest.fixture(scope="module")
def scene(folder: Path) -> Path:
    """The scene of panoramas and photos together, with a COLMAP model and an undistorted folder."""
    with pytest.MonkeyPatch.context() as patch:
        from dune_cli.matchers import sift

        patch.setattr(sift, "build", lambda *_: sift.Sift(320, 900))
        options = ("--colmap", folder / "model", "--undistort", folder / "flat", "--no-dense", "--matcher", "sift")
        run("reconstruct", folder / "all", "-o", folder / "scene.ply", "--work", folder / "work", *options)
    return folder / "scene.json"


def test_panoramas_and_photos_get_one_exact_pose_each(scene: Path) -> None:
    cameras = json.loads(scene.read_text())["cameras"]
    assert [camera["image"] for camera in cameras] == list(true_poses()) and all(c["registered"] for c in cameras)
    poses = {c["image"]: np.array(c["world_from_cam"]) for c in cameras}
    rotation_deg, centre = errors(spheres(poses))
    assert rotation_deg < 0.05 and centre < 0.1
    rotation_deg, centre = errors(poses)  # a photo of 240 px, whose focal length is estimated, is less exact
    assert rotation_deg < 0.5 and centre < 3
    sphere, photo = cameras[0], cameras[-1]
    assert sphere["K"] is None
    assert sphere["camera"] == {"model": "EQUIRECTANGULAR", "params": [400, 200], "sd": None}
    assert photo["K"][0][0] == pytest.approx(170, rel=0.02)


def test_the_colmap_model_holds_spheres_that_pycolmap_projects_to_what_they_see(scene: Path) -> None:
    model = pycolmap.Reconstruction(scene.parent / "model")
    image = model.find_image_with_name("pano1.jpg")
    assert model.cameras[image.camera_id].model_name == "EQUIRECTANGULAR"
    seen = [point for point in image.points2D if point.has_point3D()]
    points = image.cam_from_world() * np.stack([model.points3D[point.point3D_id].xyz for point in seen])
    pixels = model.cameras[image.camera_id].img_from_cam(points)
    error = np.linalg.norm(pixels - np.stack([point.xy for point in seen]), axis=1)
    assert len(seen) > 300 and np.median(error) < 0.3


def test_the_undistorted_folder_is_a_rig_of_six_views_for_each_panorama(scene: Path) -> None:
    flat = scene.parent / "flat"
    model = pycolmap.Reconstruction(flat / "sparse" / "0")
    frames = [[image for image in model.images.values() if image.frame_id == id] for id in model.frames]
    assert sorted(map(len, frames)) == [1] * len(PHOTOS) + [6] * len(PANORAMAS)
    assert {model.cameras[image.camera_id].model_name for image in model.images.values()} == {"PINHOLE"}
    rig = max(model.rigs.values(), key=lambda rig: rig.num_sensors())
    for sensor, pose in rig.non_ref_sensors.items():
        assert np.allclose(pose.translation, 0, atol=1e-9), sensor
    config = json.loads((flat / "rig_config.json").read_text())
    assert [camera["image_prefix"] for camera in config[0]["cameras"]][:2] == ["front/", "right/"]
    assert len(pycolmap.read_rig_config(flat / "rig_config.json")[0].cameras) == 6
    assert {image.name for image in model.images.values()} == {
        path.relative_to(flat / "images").as_posix() for path in (flat / "images").rglob("*.*")
    }


@pytest.mark.parametrize("form", ["scene.json", "model"])
def test_poses_and_spheres_come_back_from_what_was_written(scene: Path, form: str, tmp_path: Path) -> None:
    written = json.loads(scene.read_text())["cameras"]
    names = [camera["image"] for camera in written]
    poses, entries = read_known_cameras(scene.parent / form, names)
    for camera in written:
        np.testing.assert_allclose(poses[camera["image"]], camera["world_from_cam"], atol=1e-6)
    assert [entries[name].model == "EQUIRECTANGULAR" for name in names] == [name.startswith("pano") for name in names]
    if form == "model":
        options = ("--poses", scene.parent / form, "--no-dense", "--matcher", "sift", "--work", scene.parent / "work")
        run("reconstruct", scene.parent / "all", "-o", tmp_path / "again.ply", *options)
        again = {c["image"]: c for c in json.loads((tmp_path / "again.json").read_text())["cameras"]}
        for camera in written:
            np.testing.assert_allclose(again[camera["image"]]["world_from_cam"], camera["world_from_cam"], atol=1e-6)


def test_two_panoramas_without_a_tag_are_a_scene_when_told(scene: Path, tmp_path: Path) -> None:
    for index in (0, 1):
        room.write_panorama(tmp_path / f"pano{index}.jpg", room.render(SPHERE, room.place(index), 1), tagged=False)
    options = ("--no-dense", "--matcher", "sift", "--baseline", "1.25", "--transforms", tmp_path / "transforms.json")
    given = ("reconstruct", tmp_path / "pano0.jpg", tmp_path / "pano1.jpg", "-o", tmp_path / "two.ply")
    run(*given, *options, "--intrinsics", "equirectangular")
    document = json.loads((tmp_path / "two.json").read_text())
    poses = {camera["image"]: np.array(camera["world_from_cam"]) for camera in document["cameras"]}
    assert document["scale"] == "metric" and np.linalg.norm(poses["pano1.jpg"][:3, 3]) == pytest.approx(1.25)
    true = {name: true_poses()[name] for name in poses}
    relative, expected = (np.linalg.inv(p["pano0.jpg"]) @ p["pano1.jpg"] for p in (poses, true))
    assert np.degrees(rotation_angle(relative[:3, :3].T @ expected[:3, :3])) < 0.1
    assert np.degrees(vector_angle(relative[:3, 3], expected[:3, 3])) < 0.3
    transforms = json.loads((tmp_path / "transforms.json").read_text())
    assert transforms["camera_model"] == "EQUIRECTANGULAR"
    back, entries = read_known_cameras(tmp_path / "transforms.json", list(poses))
    np.testing.assert_allclose(back["pano1.jpg"], poses["pano1.jpg"], atol=1e-6)
    assert entries["pano1.jpg"].camera(400, 200) == SPHERE


def test_panoramas_and_photos_are_localized_in_a_map_of_panoramas(scene: Path, tmp_path: Path) -> None:
    queries = {"query.jpg": room.place(2.5, 40), "photo.png": room.place(1.6)}
    room.write_panorama(tmp_path / "query.jpg", room.render(SPHERE, queries["query.jpg"], 1))
    save_png(tmp_path / "photo.png", room.render(PHOTO, queries["photo.png"], 1))
    given = ("reloc", "--map", scene.parent, "--images", scene.parent / "all", *(tmp_path / name for name in queries))
    run(*given, "--matcher", "sift", "--neighbours", "30", "-o", tmp_path / "poses.jsonl", "--work", tmp_path / "work")
    cameras = {c["image"]: np.array(c["world_from_cam"]) for c in json.loads(scene.read_text())["cameras"]}
    fit = fit_cameras(np.stack([true_poses()[n] for n in spheres(cameras)]), np.stack(list(spheres(cameras).values())))
    found = [json.loads(line) for line in (tmp_path / "poses.jsonl").read_text().splitlines()]
    limits = {"query.jpg": (0.1, 0.005), "photo.png": (1.0, 0.06)}  # degrees, metres
    for (name, true), one in zip(queries.items(), found):
        assert one["success"], one["message"]
        pose = move_poses(fit, np.array(one["world_from_query"]))
        rotation_deg = np.degrees(rotation_angle(pose[:3, :3].T @ true[:3, :3]))
        off = np.linalg.norm(pose[:3, 3] - true[:3, 3])
        assert rotation_deg < limits[name][0] and off < limits[name][1], (name, rotation_deg, off)
        assert one["confidence"] > 0.5
    sphere = found[0]["query"]
    assert sphere["K"] is None and sphere["camera"] == {"model": "EQUIRECTANGULAR", "params": [400, 200]}
    assert max(found[0]["position_std"]) < 0.02
