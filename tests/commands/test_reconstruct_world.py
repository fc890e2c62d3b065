"""`dune reconstruct` in metres and in the world: positions in EXIF and in tables, baselines, and bad ones."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dune_cli
from dune_cli.errors import DuneError
from dune_cli.geometry import poses
from dune_cli.io.colmap.read import open_model
from dune_cli.io.crs import open_crs
from dune_cli.io.formats.ply import read_ply
from dune_cli.mvs import densify
from dune_cli.sfm.scene import Scene
from dune_cli.tasks.reconstruct import matches
from support import gps_photos, many_photos
from support.command_line import run

PLACES = tuple(range(7))
CRS = "EPSG:32632"
pytestmark = pytest.mark.usefixtures("quick_sift")


@pytest.fixture(scope="module")
def flight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven photos with GPS tags. The work folder beside them is that of the first run."""
    folder = tmp_path_factory.mktemp("world") / "photos"
    gps_photos.write(folder, PLACES)
    return folder


@pytest.fixture(scope="module")
def scenes() -> dict[tuple[Path, ...], Scene]:
    return {}


MAP = matches.reconstruct


@pytest.fixture(autouse=True)
def mapped_once(scenes: dict[tuple[Path, ...], Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same photos are mapped by the first test that needs them, and not adjusted to their positions."""

    def once(paths: Sequence[Path], cameras: Any, matcher: Any, config: Any, *arguments: Any, **named: Any) -> Scene:
        if tuple(paths) not in scenes:
            config = replace(config, positions=None)
            scenes[tuple(paths)] = MAP(paths, cameras, matcher, config, *arguments, **named)
        return scenes[tuple(paths)]

    monkeypatch.setattr(matches, "reconstruct", once)


def reconstruct(flight: Path, target: Path, *more: object):
    return run(
        *("reconstruct", flight, "-o", target, "--matcher", "sift", "--no-dense", "--pairs", "all"),
        *("--intrinsics", many_photos.INTRINSICS, "--work", flight.parent / "work", *more),
    )


def scene_of(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".json").read_text())


def centres(scene: dict[str, Any]) -> np.ndarray:
    return np.array([camera["world_from_cam"] for camera in scene["cameras"]])[:, :3, 3]


def test_exif_gives_metres_where_it_tells_them(flight: Path, tmp_path: Path) -> None:
    done = reconstruct(flight, tmp_path / "s.ply")
    assert done.returncode == 0, done.stderr
    scene = scene_of(tmp_path / "s.ply")
    assert scene["scale"] == "metric" and scene["world"] == "camera 0" and "georeference" not in scene
    assert scene["scale_from"]["source"] == "gps" and scene["scale_from"]["relative_sd"] < 0.02
    true = np.stack([gps_photos.enu(index) for index in PLACES])
    found = centres(scene)
    for a, b in ((0, 6), (1, 4)):
        length = np.linalg.norm(true[a] - true[b])
        assert np.linalg.norm(found[a] - found[b]) == pytest.approx(length, rel=0.01)
    assert scene["provenance"]["units"] == "metre"


def test_a_world_that_stands_upright(flight: Path, tmp_path: Path) -> None:
    done = reconstruct(flight, tmp_path / "s.glb", "--upright")
    assert done.returncode == 0, done.stderr
    scene = scene_of(tmp_path / "s.glb")
    assert scene["world"] == "camera 0, turned upright" and scene["gravity"]["down"] == [0, 1, 0]
    assert scene["scale"] == "metric" and "upright by" in done.stderr
    poses_of = np.array([camera["world_from_cam"] for camera in scene["cameras"]])
    assert np.abs(poses_of[:, 1, 0]).max() < 0.1 and np.linalg.norm(poses_of[0, :3, 3]) < 1e-9


def test_a_scene_in_a_projected_system(flight: Path, tmp_path: Path) -> None:
    laspy = pytest.importorskip("laspy")
    target = tmp_path / "s.laz"
    more = ("--crs", CRS, "--geojson", tmp_path / "c.geojson", "--colmap", tmp_path / "model")
    done = reconstruct(flight, target, *more)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / name) for name in ("s.laz", "s.json", "model", "c.geojson")]
    scene, true = scene_of(target), np.stack([gps_photos.geodetic(index) for index in PLACES])
    true[:, 2] = true[:, 2].round(4)  # as EXIF has it
    placed = scene["georeference"]
    assert placed["crs"] == CRS and placed["axes"] == "x east, y north, z up" and placed["outliers"] == []
    assert [one["image"] for one in placed["residuals"]] == [f"p{index}.jpg" for index in PLACES]
    frame, offset = open_crs(CRS), np.array(placed["offset"])
    assert (offset % 10 == 0).all()
    off = centres(scene) + offset - frame.from_geodetic(true)
    assert np.linalg.norm(off, axis=1).max() < 0.5  # of 60 m
    np.testing.assert_allclose(off, [one["residual_m"] for one in placed["residuals"]], atol=1e-3)
    assert np.sqrt((off**2).sum(axis=1).mean()) == pytest.approx(placed["rms_m"], rel=1e-3)

    document = json.loads((tmp_path / "c.geojson").read_text())
    assert document["type"] == "FeatureCollection" and "crs" not in document
    found = np.array([feature["geometry"]["coordinates"] for feature in document["features"]])
    np.testing.assert_allclose(found[:, [1, 0]], true[:, :2], atol=1e-5)
    np.testing.assert_allclose(found[:, 2], true[:, 2], atol=0.5)

    cloud = laspy.read(target)
    assert cloud.header.parse_crs().to_epsg() == 32632 and len(cloud.points) == scene["points"]["count"] > 100
    model = open_model(tmp_path / "model")
    points = np.column_stack([cloud.x, cloud.y, cloud.z])
    assert np.abs(np.median(points, axis=0)[:2] - frame.from_geodetic(gps_photos.ORIGIN)[:2]).max() < 500
    poses_of = {image.name: image.world_from_cam for image in model.images.values()}
    np.testing.assert_allclose(poses_of["p3.jpg"][:3, 3], centres(scene)[3], atol=1e-9)
    assert json.loads((tmp_path / "model" / "georeference.json").read_text())["offset"] == placed["offset"]


def test_a_table_of_positions_some_of_them_wrong(flight: Path, tmp_path: Path) -> None:
    known = {index: gps_photos.geodetic(index).copy() for index in PLACES}
    known[2][0] += 0.002
    table = gps_photos.table(tmp_path / "gps.csv", known)
    done = reconstruct(flight, tmp_path / "s.ply", "--gps", table)
    assert done.returncode == 0, done.stderr
    assert f"1 of 7 positions ({table}) are wrong and were not used: p2.jpg" in done.stderr
    scene = scene_of(tmp_path / "s.ply")
    placed = scene["georeference"]
    assert placed["crs"] == scene["world"] == "ENU" and placed["outliers"] == ["p2.jpg"] and placed["used"] == 6
    origin = np.array(list(placed["origin"].values()))
    assert scene["provenance"]["axes"].endswith("world x east, y north, z up")
    up = np.array([camera["world_from_cam"] for camera in scene["cameras"]])[:, :3, 1].mean(axis=0)
    assert up[2] < -0.95  # the cameras' y is down
    turned = poses.rotation_angle(
        np.array(scene["cameras"][0]["world_from_cam"])[:3, :3].T
        @ gps_photos.ENU_FROM_ROOM
        @ many_photos.arc(0)[:3, :3]
    )
    assert np.degrees(turned) < 3
    assert np.abs(origin - gps_photos.geodetic(3)).max() < 2
    assert b"axes x east, y north, z up" in (tmp_path / "s.ply").read_bytes()[:300]
    assert np.isfinite(read_ply(tmp_path / "s.ply")["x"]).all()


def test_the_cameras_are_adjusted_to_the_positions(
    flight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the positions is wrong and has no part; the residuals are told before and after."""
    monkeypatch.setattr(matches, "reconstruct", MAP)
    rng = np.random.default_rng(0)
    known = {index: gps_photos.enu(index) + 0.05 * rng.normal(size=3) for index in PLACES}
    known[2] = known[2] + [0, 30, 0]
    table = gps_photos.table(tmp_path / "p.csv", {i: [*place, 0.05] for i, place in known.items()}, "photo,x,y,z,sd")
    done = reconstruct(flight, tmp_path / "s.ply", "--gps", table)
    assert done.returncode == 0, done.stderr
    assert f"the cameras were adjusted to 6 of 7 positions ({table}): " in done.stderr
    scene = scene_of(tmp_path / "s.ply")
    adjusted, placed = scene["position_adjustment"], scene["georeference"]
    assert adjusted["used"] == 6 and adjusted["outliers"] == placed["outliers"] == ["p2.jpg"]
    assert adjusted["rms_m"][1] == pytest.approx(placed["rms_m"], rel=1e-3) and adjusted["rms_m"][1] < 0.2
    assert all(one["before_m"] >= 0 for one in placed["residuals"])
    true = np.stack([gps_photos.enu(index) for index in PLACES])
    assert np.linalg.norm(centres(scene) + placed["offset"] - true, axis=1).max() < 0.25  # of 60 m


def test_a_baseline_of_two_named_photos(flight: Path, tmp_path: Path) -> None:
    length = np.linalg.norm(gps_photos.enu(5) - gps_photos.enu(1))
    done = reconstruct(flight, tmp_path / "s.ply", "--baseline", f"p1.jpg,p5.jpg,{length}")
    assert done.returncode == 0, done.stderr
    scene = scene_of(tmp_path / "s.ply")
    found = centres(scene)
    assert np.linalg.norm(found[1] - found[5]) == pytest.approx(length)
    assert scene["scale"] == "metric" and scene["scale_from"]["photos"] == ["p1.jpg", "p5.jpg"]


def test_a_baseline_sets_the_scale_of_a_placed_scene(flight: Path, tmp_path: Path) -> None:
    table = gps_photos.table(tmp_path / "p.csv", {i: gps_photos.enu(i) * 1.1 for i in PLACES}, "photo,x,y,z")
    length = np.linalg.norm(gps_photos.enu(5) - gps_photos.enu(1))
    done = reconstruct(flight, tmp_path / "s.glb", "--gps", table, "--baseline", f"p1,p5,{length}")
    assert done.returncode == 0, done.stderr
    scene = scene_of(tmp_path / "s.glb")
    found = centres(scene)
    assert np.linalg.norm(found[1] - found[5]) == pytest.approx(length, rel=1e-6)
    assert "the positions alone would make the scene +10" in done.stderr
    assert scene["georeference"]["crs"] == "that of p.csv" and scene["scale_from"]["source"] == "baseline"


def test_positions_that_do_not_place_the_scene(flight: Path, tmp_path: Path) -> None:
    """In one place; contradicting; on a line that the cameras' attitude does not resolve either."""
    rng = np.random.default_rng(0)
    cases = {
        "do not tell the scale.*are in one place or contradict": {i: rng.normal(size=3) for i in PLACES},
        "3 or more are needed": {i: gps_photos.enu(i) for i in (1, 2)},
    }
    for number, (sentence, known) in enumerate(cases.items()):
        table = gps_photos.table(tmp_path / f"{number}.csv", known, "photo,x,y,z")
        done = reconstruct(flight, tmp_path / "s.ply", "--gps", table)
        assert done.returncode in (1, 2) and done.stdout == "", done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith("dune: ")]

        assert re.search(sentence, lines[-1]), lines


def test_a_place_that_is_refused_is_refused_before_the_depth_maps(
    flight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matches, "reconstruct", MAP)
    monkeypatch.setattr(densify, "densify", None)
    rng = np.random.default_rng(0)
    table = gps_photos.table(tmp_path / "p.csv", {i: rng.normal(size=3) for i in PLACES}, "photo,x,y,z")
    done = reconstruct(flight, tmp_path / "s.ply", "--gps", table, "--dense")
    assert done.returncode == 1 and "do not tell the scale" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--crs", "EPSG:4326"), "EPSG:4326 is geographic, its coordinates are degrees"),
        (("--crs", "EPSG:999999"), "there is no coordinate system EPSG:999999"),
        (("--crs", "EPSG:2263"), "has the unit US survey foot"),
        (("--crs", "EPSG:3857"), "name a system of the region, such as EPSG:32632"),
        (("--geojson", "c.geojson"), "needs a place on earth; add --crs or --gps"),
        (("--gps-crs", "EPSG:32632"), "--gps-crs is the system of x, y, z in --gps"),
        (("--scale-from", "marker"), "--scale-from marker needs --marker-size"),
        (("--scale-from", "gps", "--baseline", "2"), "--scale-from gps and --baseline both set the scale"),
        (("--baseline", "2", "--marker-size", "0.1"), "both set the scale; choose with --scale-from"),
        (("--baseline", "p0.jpg,x.jpg,2"), "--baseline names x.jpg, which is none of the 7 photos"),
        (("--baseline", "p0.jpg,2"), "PHOTO,PHOTO,METRES"),
        (("--crs", "enu", "--poses", "poses.json"), "--poses and --crs both set the scale"),
        (("--upright", "--crs", "enu"), "--crs has a world of its own, which --upright would turn"),
        (("--upright", "--poses", "poses.json"), "--poses has a world of its own"),
        (("--gps", "none.csv"), "none.csv"),
        (("--gps", "degrees.csv", "--crs", CRS), "which are degrees and no metres of EPSG:32632; name these columns"),
        (("--gps", "degrees.csv", "--gps-crs", "EPSG:4326"), "EPSG:4326 is geographic"),
        (("--gps", "latlon.csv", "--gps-crs", CRS), "has latitudes and longitudes, which are WGS84's"),
        (("--gps", "others.csv"), "has a position for none of the 7 photos; it names q0.jpg"),
        (("--gps", "two.csv"), "has a position for 2 of the 7 photos; 3 or more are needed"),
        (("--gps", "photos"), "is a folder; a file of positions"),
        (("--gps", "same.csv"), "all 7 positions of 7 photos ("),
        (
            ("--crs", "EPSG:32610"),
            "and the photos are at latitude 48.14 and longitude 11.58; name a system of the region",
        ),
        (("--crs", "EPSG:5773"), "EPSG:5773 is no place on earth"),
        (("--marker-size", "0"), "0.0 is not in the range x>0"),
        (("--marker-size", "nan"), "nan is not a finite number"),
        (("--marker-dictionary", "4x4"), "--marker-dictionary goes with --marker-size"),
        (("--baseline", "p0.jpg,p0.jpg,2"), "METRES between the first two cameras, or PHOTO,PHOTO,METRES"),
        (("--baseline", "p0.jpg,p1.jpg,-2"), "-2.0 is not in the range x>0"),
        (("--scale-from", "moon"), "'moon' is not one of 'gps', 'marker', 'baseline'"),
    ],
)
def test_bad_words_are_one_sentence(more: tuple[str, ...], sentence: str, flight: Path, tmp_path: Path) -> None:
    (tmp_path / "poses.json").write_text(
        json.dumps({f"p{index}.jpg": many_photos.arc(index).tolist() for index in PLACES})
    )
    places = [gps_photos.geodetic(index) for index in PLACES]
    gps_photos.table(tmp_path / "degrees.csv", dict(enumerate(places)), "photo,x,y,z")
    gps_photos.table(tmp_path / "latlon.csv", dict(enumerate(places)))
    gps_photos.table(tmp_path / "two.csv", dict(enumerate(places[:2])))
    gps_photos.table(tmp_path / "same.csv", dict.fromkeys(range(len(places)), places[0]))
    others = (tmp_path / "latlon.csv").read_text().replace("\np", "\nq")
    (tmp_path / "others.csv").write_text(others)
    (tmp_path / "photos").mkdir()
    files = (".json", ".geojson", ".csv", "photos")
    words = [str(tmp_path / word) if word.endswith(files) else word for word in more]
    done = reconstruct(flight, tmp_path / "s.ply", *words)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert sentence in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "s.ply").exists()


def test_photos_without_positions_are_told(tmp_path: Path) -> None:
    gps_photos.write(tmp_path / "photos", PLACES[:4], {1: gps_photos.geodetic(1)})
    done = reconstruct(tmp_path / "photos", tmp_path / "s.ply", "--crs", "enu")
    assert done.returncode == 2
    assert "fewer than three of the 4 photos have a GPS position with a height" in done.stderr
    done = reconstruct(tmp_path / "photos", tmp_path / "s.ply", "--scale-from", "gps")
    assert done.returncode == 2 and "give --gps FILE" in done.stderr


def test_python_places_the_scene_as_the_command_does(flight: Path, tmp_path: Path) -> None:
    given = {"intrinsics": many_photos.INTRINSICS, "dense": False}
    scene = dune_cli.reconstruct(flight, "sift", crs=CRS, **given)
    document = scene.save(tmp_path / "python.ply")
    assert reconstruct(flight, tmp_path / "command.ply", "--crs", CRS).returncode == 0
    command = scene_of(tmp_path / "command.ply")
    assert document["georeference"]["crs"] == command["georeference"]["crs"]
    np.testing.assert_allclose(centres(scene_of(tmp_path / "python.ply")), centres(command), atol=1e-6)
    with pytest.raises(DuneError, match="is no coordinate system"):
        dune_cli.reconstruct(flight, "sift", crs="EPSG:1", **given)
