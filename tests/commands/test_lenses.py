"""Lenses from one end to the other, on photos that are rendered through them: given, brought by poses or by a map, and
estimated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from click.testing import CliRunner, Result

from dune_cli.cli import main
from dune_cli.evaluation.metrics import camera_errors, extent
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.poses import from_rotation_translation, rotation_from_rotvec
from dune_cli.io.camera_files import colmap_entry
from dune_cli.io.colmap.read import open_model
from dune_cli.io.colmap.write import write_colmap
from dune_cli.io.formats.ply import read_ply
from dune_cli.io.intrinsics import resolve_cameras
from dune_cli.io.meshes import Frustum
from dune_cli.io.photos import read_photo
from dune_cli.io.png import save_png
from dune_cli.io.results import read_result
from dune_cli.io.undistortion import StraightPhoto
from support import rendered_rooms as room
from support import synthetic_scenes
from support.many_photos import arc
from support.warped import warped

SIZE = (320, 240)
PINHOLE = (200.0, 201.0, 159.5, 119.5)
BARREL = Camera("OPENCV", (*PINHOLE, -0.28, 0.07, 0.001, -0.001), *SIZE)
FISHEYE = Camera("OPENCV_FISHEYE", (130.0, 130.0, 159.5, 119.5, 0.02, -0.004, 0.001, -0.0002), *SIZE)
PLACES = range(6)


def write_photos(folder: Path, camera: Camera) -> Path:
    folder.mkdir()
    for place in PLACES:
        save_png(folder / f"p{place}.png", synthetic_scenes.render_lens(camera, arc(place)))
    return folder


def write_model(folder: Path, camera: Camera, names: list[str]) -> Path:
    frusta = [Frustum(camera.K, arc(int(name[1])), *SIZE, name) for name in names]
    write_colmap(folder, frusta, lenses=[camera] * len(frusta))
    return folder


@pytest.fixture(scope="module")
def barrel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of a lens with a strong barrel distortion; what is computed of them is kept between the tests."""
    folder = tmp_path_factory.mktemp("barrel")
    write_photos(folder / "photos", BARREL)
    return folder


@pytest.fixture(autouse=True)
def _quick_sift(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the photos' own size."""
    from dune_cli.matchers import sift

    monkeypatch.setattr(sift, "build", lambda *_: sift.Sift(SIZE[0], 1500))


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result


def reconstruct(folder: Path, target: Path, *options: object) -> Result:
    work = ("--work", folder / "work")
    given = ("reconstruct", folder / "photos", "-o", target, "--no-dense", "--matcher", "sift", "--overwrite")
    return run(*given, *work, *options)


def errors(target: Path) -> tuple[float, float, dict]:
    """The largest rotation error in degrees, the largest centre's as a share of the extent, and the first camera."""
    scene = json.loads(target.with_suffix(".json").read_text())
    assert scene["quality"]["registered"] == len(PLACES)
    found = np.array([camera["world_from_cam"] for camera in scene["cameras"]])
    true = np.stack([arc(place) for place in PLACES])
    off = camera_errors(true, found)
    return float(off.rotation_deg.max()), float(off.centre.max() / extent(true)), scene["cameras"][0]


def cloud(target: Path) -> np.ndarray:
    properties = read_ply(target)
    return np.stack([properties[name] for name in "xyz"], axis=-1).astype(np.float64)


def colmap_words(camera: Camera) -> str:
    return ",".join(map(str, [camera.model, *SIZE, *camera.colmap_params]))


@pytest.mark.slow
def test_a_given_lens_is_kept_and_goes_through_every_export(barrel: Path, tmp_path: Path) -> None:
    target = tmp_path / "scene.ply"
    exports = ("--colmap", tmp_path / "model", "--transforms", tmp_path / "transforms.json")
    exports += ("--undistort", tmp_path / "straight")
    told = reconstruct(barrel, target, "--intrinsics", colmap_words(BARREL), *exports)
    rotation_deg, centre, camera = errors(target)
    assert rotation_deg < 0.05 and centre < 0.005
    assert camera["focal_source"] == "given" and camera["camera"]["model"] == "OPENCV"
    np.testing.assert_allclose(camera["camera"]["params"], BARREL.params, rtol=1e-12)
    photo = read_photo(barrel / "photos" / "p0.png")
    for file in (tmp_path / "model", tmp_path / "transforms.json", target.with_suffix(".json")):
        again = resolve_cameras([photo], str(file), None)[0].camera
        assert again.model == "OPENCV"
        np.testing.assert_allclose(again.params, BARREL.params, rtol=0, atol=1e-6)
    theirs = pycolmap.Reconstruction(str(tmp_path / "model"))
    assert theirs.compute_mean_reprojection_error() < 0.5
    assert all(colmap_entry(image.camera).model == "OPENCV" for image in open_model(tmp_path / "model").images.values())
    assert told.stdout.split()[-1] == str(tmp_path / "straight")
    undistorted = json.loads(target.with_suffix(".json").read_text())["undistorted"]
    assert undistorted == {"folder": "straight", "images": len(PLACES), "copied": 0, "masks": False}
    straight = pycolmap.Reconstruction(str(tmp_path / "straight" / "sparse" / "0"))
    # undistortion stretches the errors a little
    assert straight.compute_mean_reprojection_error() == pytest.approx(
        theirs.compute_mean_reprojection_error(), abs=0.1
    )
    for image in straight.images.values():
        assert image.camera.model_name == "PINHOLE"
        photo = read_photo(tmp_path / "straight" / "images" / image.name)
        assert (photo.width, photo.height) == (image.camera.width, image.camera.height)


@pytest.mark.slow
def test_the_true_pinhole_part_makes_nothing_worse(barrel: Path, tmp_path: Path) -> None:
    """Case 05: four numbers say nothing of the lens, which is estimated with and without them."""
    reconstruct(barrel, tmp_path / "without.ply")
    told = reconstruct(barrel, tmp_path / "with.ply", "--intrinsics", ",".join(map(str, PINHOLE)))
    without, given = errors(tmp_path / "without.ply"), errors(tmp_path / "with.ply")
    assert given[0] < 0.1 and given[1] < 0.01
    assert given[0] <= without[0] + 0.02 and given[1] <= without[1] + 0.002
    assert given[2]["focal_source"] == "given"
    np.testing.assert_allclose(np.array(given[2]["K"])[[0, 1], [0, 1]], PINHOLE[:2])
    assert given[2]["camera"]["params"][4] == pytest.approx(-0.28, abs=0.03)
    assert "lens of 6 photos" in told.output


def test_a_lens_without_distortion_that_is_said_to_be_one_stays(barrel: Path, tmp_path: Path) -> None:
    pinhole = Camera("PINHOLE", PINHOLE, *SIZE)
    reconstruct(barrel, tmp_path / "scene.ply", "--intrinsics", colmap_words(pinhole))
    assert errors(tmp_path / "scene.ply")[2]["camera"]["model"] == "PINHOLE"


@pytest.mark.slow
def test_poses_of_a_colmap_model_bring_their_lens(barrel: Path, tmp_path: Path) -> None:
    """Case 04: points lie on the surfaces."""
    model = write_model(tmp_path / "model", BARREL, [f"p{place}.png" for place in PLACES])
    told = reconstruct(barrel, tmp_path / "scene.ply", "--poses", model)
    assert "has the cameras of 6 photos as well (OPENCV), which are used" in told.output
    points = cloud(tmp_path / "scene.ply")
    distances = np.full(len(points), np.inf)
    for corner, u, v in synthetic_scenes.rectangles():
        at = points - corner
        a, b = (np.clip(at @ side / (side @ side), 0, 1)[:, None] for side in (u, v))
        distances = np.minimum(distances, np.linalg.norm(at - a * u - b * v, axis=1))
    assert len(points) > 300 and np.median(distances) < 0.02


def test_two_photos_are_undistorted(barrel: Path, tmp_path: Path) -> None:
    photos = [barrel / "photos" / f"p{place}.png" for place in (0, 2)]
    target = tmp_path / "scene.ply"
    given = ("reconstruct", *photos, "-o", target, "--matcher", "sift", "--intrinsics", colmap_words(BARREL))
    run(*given)
    scene = json.loads(target.with_suffix(".json").read_text())
    found = np.array([camera["world_from_cam"] for camera in scene["cameras"]])
    true = np.linalg.inv(arc(0)) @ arc(2)
    turn = found[1][:3, :3].T @ true[:3, :3]
    assert np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))) < 0.1
    direction = true[:3, 3] / np.linalg.norm(true[:3, 3])
    assert np.degrees(np.arccos(np.clip(found[1][:3, 3] @ direction, -1, 1))) < 0.5
    assert scene["cameras"][0]["camera"]["model"] == "OPENCV"
    points = cloud(target)
    assert len(points) > 0.3 * SIZE[0] * SIZE[1]


@pytest.mark.slow
def test_a_query_of_the_size_of_the_maps_photos_has_their_lens(tmp_path: Path) -> None:
    """Case 02."""
    write_photos(tmp_path / "photos", FISHEYE)
    names = [f"p{place}.png" for place in PLACES if place != 2]
    model = write_model(tmp_path / "model", FISHEYE, names)
    query = tmp_path / "photos" / "p2.png"
    common = ("reloc", "--map", model, query, "--images", tmp_path / "photos", "--matcher", "sift", "--json")
    numbers = ",".join(map(str, FISHEYE.params[:4]))
    for options, source in (
        ((), "map"),
        (("--intrinsics", colmap_words(FISHEYE)), "given"),
        (("--intrinsics", numbers), "given"),
    ):
        result = run(*common, *options)
        found = json.loads(result.stdout)
        assert found["query"]["focal_source"] == source and found["query"]["camera"]["model"] == "OPENCV_FISHEYE"
        pose = np.array(found["world_from_query"])
        assert np.linalg.norm(pose[:3, 3] - arc(2)[:3, 3]) < 0.02
        turn = pose[:3, :3].T @ arc(2)[:3, :3]
        assert np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))) < 0.2
        assert ("their camera is taken (OPENCV_FISHEYE)" in result.stderr) == (source == "map")
        assert ("their lens is taken (OPENCV_FISHEYE)" in result.stderr) == (numbers in options)


def test_a_photo_relative_to_another_with_its_lens(barrel: Path) -> None:
    photos = [barrel / "photos" / f"p{place}.png" for place in (2, 0)]
    result = run("reloc", *photos, "--matcher", "sift", "--intrinsics", colmap_words(BARREL), "--json")
    found = json.loads(result.stdout)
    true = np.linalg.inv(arc(0)) @ arc(2)
    turn = np.array(found["ref_from_query"])[:3, :3].T @ true[:3, :3]
    assert np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))) < 0.1
    assert found["query"]["camera"]["params"] == list(BARREL.params)


def test_depth_of_a_photo_with_a_lens_lies_on_its_rays(barrel: Path, tmp_path: Path) -> None:
    photo, words = barrel / "photos" / "p0.png", ["--intrinsics", colmap_words(BARREL)]
    result = CliRunner().invoke(main, ["depth", str(photo), "-o", str(tmp_path / "d.npz"), *words])
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "d.json").read_text())
    assert document["camera"] == {"model": BARREL.model, "params": list(BARREL.params)}
    assert document["focal_source"] == "given" and document["undistorted_K"] != document["K"]
    depth = np.load(tmp_path / "d.npz")["depth"]
    assert depth.shape == (BARREL.height, BARREL.width) and np.isfinite(depth).mean() > 0.8

    result = CliRunner().invoke(main, ["depth", str(photo), "-o", str(tmp_path / "cloud.ply"), *words])
    assert result.exit_code == 0, result.output
    points = read_ply(tmp_path / "cloud.ply")
    pixels = BARREL.project(np.stack([points[axis] for axis in "xyz"], axis=-1))
    stride = json.loads((tmp_path / "cloud.json").read_text())["points"]["stride_px"]
    np.testing.assert_allclose(pixels / stride, np.round(pixels / stride), atol=0.01)


def test_people_of_a_photo_with_a_lens_are_in_its_pixels(example_photos: Path, tmp_path: Path) -> None:
    """As the photo itself has them, which is what a pinhole camera sees of the distorted one."""
    rgb = read_photo(example_photos / "astronaut.png").rgb
    lens = Camera("OPENCV", (620.0, 618.0, 250.0, 260.0, -0.3, 0.08, 0.002, -0.001), 512, 512)
    straight = StraightPhoto.of(lens)
    save_png(tmp_path / "bent.png", warped(rgb, lens, straight.K))
    words = ",".join(map(str, ["OPENCV", 512, 512, *lens.colmap_params]))
    target, over = tmp_path / "people.glb", tmp_path / "over.png"
    run("human", tmp_path / "bent.png", "-o", target, "--overlay", over, "--intrinsics", words)
    numbers = ",".join(str(straight.K[k]) for k in ((0, 0), (1, 1), (0, 2), (1, 2)))
    plain = json.loads(run("human", example_photos / "astronaut.png", "--json", "--intrinsics", numbers).stdout)
    bent = json.loads(target.with_suffix(".json").read_text())
    assert bent["camera"]["model"] == "OPENCV" and bent["camera"]["params"] == list(lens.params)
    np.testing.assert_allclose(read_result(target).data.cameras[0].K, straight.K, atol=1e-9)
    assert "model" not in plain["camera"] and "undistorted_K" not in plain["camera"]
    names, (person,), (other,) = plain["body_model"]["joints"], bent["people"], plain["people"]
    np.testing.assert_allclose(person["joints2d"], lens.project(np.array(person["joints3d"])), atol=1e-2)
    shown = [names.index(name) for name in ("head", "neck02", "upperarm01.L", "upperarm01.R")]
    expected = straight.pixels_in_photo(np.array(other["joints2d"])[shown])
    apart = np.linalg.norm(np.array(person["joints2d"])[shown] - expected, axis=-1)
    assert np.median(apart) < 8 and apart.max() < 16  # the photo moved by one pixel moves them by 4 to 8
    assert person["head"][2] == pytest.approx(other["head"][2], rel=0.05) and person["fit_residual_px"] < 12
    drawn = (read_photo(over).rgb != read_photo(tmp_path / "bent.png").rgb).any(-1)
    x, y = np.rint(person["head_px"]).astype(int)
    assert drawn[y, x] and 0.2 < drawn.mean() < 0.8


def test_a_panorama_has_no_people(tmp_path: Path) -> None:
    save_png(tmp_path / "sphere.png", np.zeros((64, 128, 3), np.uint8))
    words = ["human", str(tmp_path / "sphere.png"), "--json", "--intrinsics", "EQUIRECTANGULAR"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2 and "is a panorama of the whole sphere" in result.stderr


CROPPED = Camera("OPENCV", (240.0, 241.0, 110.0, 150.0, *BARREL.distortion), *SIZE)  # its centre is off the middle
LENSES = {"fisheye": (FISHEYE,), "cropped, of several sizes": (CROPPED, CROPPED.resized(240, 180))}


@pytest.mark.slow
@pytest.mark.parametrize("cameras", LENSES.values(), ids=list(LENSES))
def test_given_lenses_of_every_kind_place_photos_in_a_room(cameras: tuple[Camera, ...], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    true = {}
    for number in range(5):
        turn = rotation_from_rotvec(np.array([0.08 * np.sin(2 * number), 0.4 * np.sin(1.3 * number), 0.05]))
        centre = np.array([0.45 * number - 1.0, 0.3 * np.sin(1.7 * number), -2.2 + 0.3 * np.cos(number)])
        true[f"p{number}.png"] = from_rotation_translation(turn, centre)
        camera = cameras[number % len(cameras)]
        save_png(tmp_path / "photos" / f"p{number}.png", room.render(camera, true[f"p{number}.png"]))
    reconstruct(tmp_path, tmp_path / "scene.ply", "--intrinsics", colmap_words(cameras[0]))
    scene = json.loads((tmp_path / "scene.json").read_text())["cameras"]
    found = camera_errors(np.stack(list(true.values())), np.array([camera["world_from_cam"] for camera in scene]))
    off = found.centre / extent(np.stack(list(true.values())))
    assert np.median(found.rotation_deg) < 0.05 and np.median(off) < 0.001
    assert found.rotation_deg.max() < 0.1 and off.max() < 0.003  # photos of 240 and 320 px
    sizes = [(camera.width, camera.height) for camera in cameras]
    assert {(camera["width"], camera["height"]) for camera in scene} == set(sizes)
