"""Photos that EXIF turns: the same scene as of upright ones, files that fit the stored pixels, and these files as
input again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from click.testing import CliRunner
from PIL import Image

from dune_cli.cli import main
from dune_cli.geometry import poses
from support.many_photos import HEIGHT, INTRINSICS, WIDTH, K, arc, picture
from support.odd_photos import save_turned
from support.synthetic_scenes import render

pytestmark = pytest.mark.usefixtures("quick_sift")
TAGS = {0: 6, 1: 8, 2: 3, 3: 1}  # of the places


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


def reconstruct(root: Path, photos: str, *more: object) -> str:
    words = ("--matcher", "sift", "--no-dense", "--intrinsics", INTRINSICS, "--work", root / "work", *more)
    code, _, err = run("reconstruct", *sorted((root / photos).glob("*.png")), *words)
    assert code == 0, err
    return err


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """upright/ and turned/ hold the same pictures, without loss; up.json and down.json their scenes."""
    folder = tmp_path_factory.mktemp("turned")
    for place, tag in TAGS.items():
        save_turned(folder / "upright" / f"p{place}.png", picture(place), 1)
        save_turned(folder / "turned" / f"p{place}.png", picture(place), tag)
    reconstruct(folder, "upright", "-o", folder / "up.ply")
    told = reconstruct(
        folder, "turned", "-o", folder / "down.ply", "--colmap", folder / "turned" / "model", "--transforms",
        folder / "t.json",
    )  # fmt: skip
    assert "EXIF turns p0.png and 2 more" in told
    return folder


def scene(path: Path) -> dict:
    return json.loads(path.read_text())


def test_the_scene_is_that_of_the_upright_photos(root: Path) -> None:
    up, down = scene(root / "up.json"), scene(root / "down.json")
    assert up["image_size_is"] == down["image_size_is"] == "upright"
    assert [camera.pop("orientation", 1) for camera in down["cameras"]] == list(TAGS.values())
    for one, two in zip(up["cameras"], down["cameras"]):  # matches come in the order of the files' hashes
        poses_of = [[camera.pop(name) for name in ("world_from_cam", "cam_from_world")] for camera in (one, two)]
        np.testing.assert_allclose(poses_of[1], poses_of[0], atol=1e-3)
        assert one == two
    assert abs(down["points"]["count"] / up["points"]["count"] - 1) < 0.02


def test_the_model_fits_the_stored_pixels_and_pycolmap_undistorts_them(root: Path, tmp_path: Path) -> None:
    model = pycolmap.Reconstruction(str(root / "turned" / "model"))
    assert model.num_reg_images() == 4
    for image in model.images.values():
        stored = np.asarray(Image.open(root / "turned" / image.name))
        assert (image.camera.height, image.camera.width) == stored.shape[:2]
        errors, shades = [], []
        for seen in image.points2D:
            if seen.has_point3D():
                point = model.points3D[seen.point3D_id]
                errors.append(np.linalg.norm(image.project_point(point.xyz) - seen.xy))
                x, y = np.rint(seen.xy - 0.5).astype(int)
                shades.append(np.abs(stored[y, x].astype(float) - point.color).mean())
        assert len(errors) > 50 and np.median(errors) < 0.5
        assert np.median(shades) < 12  # grey levels: the picture there has the point's colour
    pycolmap.undistort_images(str(tmp_path / "u"), str(root / "turned" / "model"), str(root / "turned"))
    for image in model.images.values():
        flat = np.asarray(Image.open(tmp_path / "u" / "images" / image.name))
        np.testing.assert_array_equal(flat, np.asarray(Image.open(root / "turned" / image.name)))


@pytest.mark.parametrize("known", ["turned/model", "t.json", "down.json"])
def test_what_was_written_comes_back_as_poses(root: Path, tmp_path: Path, known: str) -> None:
    told = reconstruct(root, "turned", "-o", tmp_path / "again.ply", "--poses", root / known)
    assert "EXIF turns p0.png and 2 more; the cameras are taken as those of " in told
    assert ("stored pixels" in told) == (known != "down.json")
    before, after = scene(root / "down.json"), scene(tmp_path / "again.json")
    for one, two in zip(before["cameras"], after["cameras"]):
        np.testing.assert_allclose(two["world_from_cam"], one["world_from_cam"], atol=1e-9)
    assert after["points"]["count"] > 0.9 * before["points"]["count"]
    assert after["quality"]["reprojection_error_px"] < 0.5


def test_what_was_written_is_a_map(root: Path, tmp_path: Path) -> None:
    """A query that is stored turned itself, between two photos of the map."""
    query = tmp_path / "query.png"
    half = poses.from_rotation_translation(arc(2)[:3, :3], (arc(1)[:3, 3] + arc(2)[:3, 3]) / 2)
    save_turned(query, render(K, half, WIDTH, HEIGHT, 0, samples=1)[0], 8)
    code, out, err = run(
        "reloc", query, "--map", root / "turned" / "model", "--images", root / "turned", "--matcher", "sift",
        "--intrinsics", INTRINSICS, "--json", "--work", tmp_path / "w",
    )  # fmt: skip
    assert code == 0, err
    found = np.array(json.loads(out)["world_from_query"])
    cameras = [np.array(camera["world_from_cam"]) for camera in scene(root / "down.json")["cameras"]]
    unit = np.linalg.norm(cameras[1][:3, 3] - cameras[0][:3, 3]) / np.linalg.norm(arc(1)[:3, 3] - arc(0)[:3, 3])
    truth = poses.inverse(arc(0)) @ half
    truth[:3, 3] *= unit
    assert np.degrees(poses.rotation_angle(found[:3, :3].T @ truth[:3, :3])) < 0.5
    assert np.linalg.norm(found[:3, 3] - truth[:3, 3]) < 0.05 * unit


@pytest.mark.parametrize("option", ["--colmap", "--transforms", "--depths"])
def test_mirrored_photos_are_refused_before_the_work(tmp_path: Path, option: str) -> None:
    for place in range(3):
        save_turned(tmp_path / "photos" / f"p{place}.jpg", picture(place)[:32, :48], 7 if place == 1 else 6)
    target = tmp_path / ("t.json" if option == "--transforms" else "out")
    code, _, err = run("reconstruct", tmp_path / "photos", "-o", tmp_path / "s.ply", option, target)
    assert code == 2 and "p1.jpg is stored mirrored (EXIF orientation 7)" in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
