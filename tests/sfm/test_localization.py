"""Photos in a map: the pose comes back in the map's own world and scale, other places and loose poses do not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from dune_cli.errors import UserError
from dune_cli.geometry import cameras, poses
from dune_cli.geometry.absolute_pose import Matches2D3D
from dune_cli.geometry.camera_models import Camera
from dune_cli.io.cache import WorkFolder, open_work
from dune_cli.io.colmap.write import write_colmap
from dune_cli.io.json_files import dumps
from dune_cli.io.meshes import Frustum
from dune_cli.io.photos import read_photo
from dune_cli.matchers.matcher import Matcher, Matches
from dune_cli.matchers.sift import Sift
from dune_cli.provenance import Source
from dune_cli.sfm.features import extract_features
from dune_cli.sfm.landmarks import ImageLandmarks, LandmarkConfig, Landmarks, matching_neighbours
from dune_cli.sfm.localization import (
    LocalizationConfig,
    LocalizationResult,
    Query,
    localize,
    localize_from_matches,
)
from dune_cli.sfm.photo_map import PhotoMap, open_map
from dune_cli.tasks import reloc
from support import synthetic_maps

K, QUERY = synthetic_maps.K, synthetic_maps.QUERY
CAMERA = Camera.pinhole(K, synthetic_maps.WIDTH, synthetic_maps.HEIGHT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("map")
    synthetic_maps.write_photos(folder)
    synthetic_maps.write_model(folder)
    return folder


@pytest.fixture(scope="module")
def sift() -> Sift:
    return Sift(synthetic_maps.WIDTH, 1500)


@pytest.fixture(scope="module")
def points(folder: Path, sift: Sift) -> Landmarks:
    return Landmarks(open_map(folder), sift, LandmarkConfig(), WorkFolder(None))


def find(points: Landmarks, file: Path, source: str = "given", camera: Camera = CAMERA) -> LocalizationResult:
    everyone = [(index, None) for index in range(len(points.map.images))]
    return localize(Query(read_photo(file), camera, source), points, everyone, LocalizationConfig())


def errors(found: LocalizationResult, truth: np.ndarray = QUERY) -> tuple[float, float]:
    """Degrees and the distance of the centres."""
    turned = truth[:3, :3].T @ found.world_from_query[:3, :3]
    return (
        float(np.degrees(poses.rotation_angle(turned))),
        float(np.linalg.norm(truth[:3, 3] - found.world_from_query[:3, 3])),
    )


def test_a_loose_pose_is_refused(points: Landmarks, folder: Path) -> None:
    """Points in a tiny spot agree on many poses at once."""
    rng = np.random.default_rng(0)
    centre = np.array([160.0, 120.0])
    pixels = centre + rng.uniform(-6, 6, (40, 2))
    world = poses.transform_points(QUERY, cameras.backproject(pixels, rng.uniform(5, 5.05, 40), K))
    seen = Matches2D3D.of(pixels + rng.normal(0, 0.6, pixels.shape), world, np.zeros(40, dtype=int), 0.1)
    query = Query(read_photo(folder / "query.png"), CAMERA, "given")
    found = localize_from_matches(seen, query, points.map, [(0, None)], LocalizationConfig(threshold=20.0))
    assert not found.success and "inliers determine its position only to" in found.message and found.covariance is None


# photos


def test_a_query_is_found_in_the_map(points: Landmarks, folder: Path) -> None:
    found = find(points, folder / "query.png")
    degrees, metres = errors(found)
    assert found.success and degrees < 0.15 and metres < 0.02
    assert found.inliers > 60 and 0.8 < found.confidence < 1 and found.reprojection_error_px < 2
    # the truth lies within what the covariance says
    assert metres < 4 * np.linalg.norm(found.position_std) and degrees < 4 * found.rotation_std_deg
    assert [seen.name for seen in found.retrieved] == list(synthetic_maps.POSES)
    assert all(seen.inliers <= seen.matches for seen in found.retrieved) and found.retrieved[0].inliers > 20


def test_large_coordinates_cost_no_digits(points: Landmarks, folder: Path, sift: Sift, tmp_path: Path) -> None:
    """A map in UTM, as a model and as a scene: the pose is that of the near map, moved."""
    shift = np.array([512345.678, 4567890.123, 187.5])
    frusta, cameras_json = [], []
    for name, pose in synthetic_maps.POSES.items():
        far = pose.copy()
        far[:3, 3] += shift
        frusta.append(Frustum(K, far, synthetic_maps.WIDTH, synthetic_maps.HEIGHT, name))
        size = {"width": synthetic_maps.WIDTH, "height": synthetic_maps.HEIGHT, "registered": True}
        cameras_json.append({"image": name, "K": K.tolist(), "world_from_cam": far.tolist(), **size})
    write_colmap(tmp_path / "model", frusta)
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene" / "scene.json").write_text(json.dumps({"schema": "dune.scene/1", "cameras": cameras_json}))
    near = find(points, folder / "query.png")
    for kind in ("model", "scene"):
        far_map = open_map(tmp_path / kind, folder / "images")
        assert max(np.abs(image.world_from_cam).max() for image in far_map.images) < 20
        found = find(Landmarks(far_map, sift, LandmarkConfig(), WorkFolder(None)), folder / "query.png")
        there = near.world_from_query.copy()
        there[:3, 3] += shift
        np.testing.assert_allclose(found.world_from_query, there, atol=1e-6)
        np.testing.assert_allclose(found.covariance, near.covariance, rtol=1e-3, atol=1e-12)
        tree = json.loads(dumps(reloc.map_document(found, {})))
        np.testing.assert_allclose(tree["position"], there[:3, 3], atol=1e-6)
        assert "512345.9" in reloc.map_pose_in_words(found)


def test_twice_the_same(points: Landmarks, folder: Path, sift: Sift) -> None:
    again = Landmarks(open_map(folder), sift, LandmarkConfig(), WorkFolder(None))
    first, second = find(points, folder / "query.png"), find(again, folder / "query.png")
    np.testing.assert_array_equal(first.world_from_query, second.world_from_query)
    np.testing.assert_array_equal(first.covariance, second.covariance)


def test_a_guessed_focal_length_is_estimated(points: Landmarks, folder: Path) -> None:
    wide = Camera.pinhole(cameras.K_from_fov(75, synthetic_maps.WIDTH, synthetic_maps.HEIGHT), 320, 240)
    found = find(points, folder / "query.png", "default", wide)
    assert found.focal_source == "estimated" and found.K[0, 0] == pytest.approx(K[0, 0], rel=0.03)
    assert errors(found)[1] < 0.1


def test_another_place_is_refused(points: Landmarks, folder: Path) -> None:
    for source in ("given", "default"):
        found = find(points, folder / "elsewhere.png", source)
        assert not found.success and found.world_from_query is None and found.position_std is None
        assert "does not show enough of" in found.message and found.confidence < 0.2


def test_the_scale_of_the_map_is_that_of_the_pose(folder: Path, sift: Sift, tmp_path: Path) -> None:
    synthetic_maps.write_model(tmp_path, scale=250.0)
    metric = open_map(tmp_path, folder / "images", "metric")
    assert (metric.scale, metric.scale_note) == ("metric", None)
    found = find(Landmarks(metric, sift, LandmarkConfig(), WorkFolder(None)), folder / "query.png")
    truth = QUERY.copy()
    truth[:3, 3] *= 250
    degrees, distance = errors(found, truth)
    assert degrees < 0.15 and distance < 250 * 0.02


def test_lens_distortion_of_the_map(folder: Path, sift: Sift, tmp_path: Path) -> None:
    """Photos bent by a radial term, and a model that knows it, give the pose all the same."""
    import cv2

    bent = Camera.brown(K, [-0.12], synthetic_maps.WIDTH, synthetic_maps.HEIGHT)
    there = bent.undistort(cameras.pixel_grid(synthetic_maps.HEIGHT, synthetic_maps.WIDTH).reshape(-1, 2))
    where = there.reshape(synthetic_maps.HEIGHT, synthetic_maps.WIDTH, 2).astype(np.float32)
    for name in synthetic_maps.POSES:
        photo = cv2.imread(str(folder / "images" / name))
        cv2.imwrite(str(tmp_path / name), cv2.remap(photo, where[..., 0], where[..., 1], cv2.INTER_CUBIC))
    model = pycolmap.Reconstruction(str(folder))
    for camera in model.cameras.values():
        camera.model, camera.params = getattr(pycolmap.CameraModelId, bent.model), list(bent.colmap_params)
    model.write(str(tmp_path))
    bent_map = open_map(tmp_path)
    assert bent_map.images[0].camera == bent
    found = find(Landmarks(bent_map, sift, LandmarkConfig(), WorkFolder(None)), folder / "query.png")
    degrees, metres = errors(found)
    assert degrees < 0.3 and metres < 0.05


def test_camera_models() -> None:
    pixels = np.array([[0.0, 0.0], [159.5, 119.5], [300.0, 20.0]])
    np.testing.assert_array_equal(CAMERA.undistort(pixels), pixels)
    np.testing.assert_allclose(CAMERA.K, K)
    bent = Camera.brown(K, [-0.1], 320, 240)
    straight = bent.undistort(pixels)
    np.testing.assert_allclose(straight[1], pixels[1])
    assert np.linalg.norm(straight[0] - pixels[1]) > np.linalg.norm(pixels[0] - pixels[1])  # barrel bends inwards


# points of the map, and what is kept of them


class Dense(Matcher):
    """A matcher without keypoints: SIFT's matches, each pair's a fraction of a pixel elsewhere."""

    name, working_size_px, source = "dense", synthetic_maps.WIDTH, Source("dense")

    def __init__(self, sift: Sift) -> None:
        self.sift, self.count = sift, 0

    def match(self, rgb1: np.ndarray, rgb2: np.ndarray) -> Matches:
        self.count += 1
        found = self.sift.match(rgb1, rgb2)
        moved = np.random.default_rng(self.count).uniform(-0.3, 0.3, (2, *found.points1.shape))
        return replace(found, points1=found.points1 + moved[0], points2=found.points2 + moved[1])


def test_points_lie_where_the_scene_is(points: Landmarks) -> None:
    own = points.points(0)
    image = points.map.images[0]
    seen = cameras.project(poses.transform_points(image.cam_from_world, own.points_world), K)
    assert len(own.pixels) > 60 and np.percentile(np.linalg.norm(seen - own.pixels, axis=1), 90) < 2
    assert (own.observations >= 2).all() and own.observations.max() == 4


def test_nearest_points() -> None:
    own = ImageLandmarks(np.array([[10.0, 10.0], [50.0, 50.0]]), np.zeros((2, 3)), np.ones(2))
    np.testing.assert_array_equal(own.nearest(np.array([[50.4, 50.0], [10.0, 11.0], [30.0, 30.0]]), 0.5), [1, -1, -1])
    empty = ImageLandmarks(np.zeros((0, 2)), np.zeros((0, 3)), np.zeros(0))
    np.testing.assert_array_equal(empty.nearest(np.array([[1.0, 1.0]]), 5.0), [-1])


def test_a_matcher_without_keypoints(folder: Path, sift: Sift) -> None:
    dense = Landmarks(open_map(folder), Dense(sift), LandmarkConfig(), WorkFolder(None))
    found = find(dense, folder / "query.png")
    degrees, metres = errors(found)
    assert found.success and degrees < 0.3 and metres < 0.04


class Counting(Sift):
    """SIFT that counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__(synthetic_maps.WIDTH, 1500)
        self.extracted = self.compared = 0

    def extract(self, rgb: np.ndarray):
        self.extracted += 1
        return super().extract(rgb)

    def _compare(self, features1, features2):
        self.compared += 1
        return super()._compare(features1, features2)


def test_what_is_kept_is_not_computed_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts, found = [], []
    for _ in range(2):
        matcher = Counting()
        points = Landmarks(open_map(folder), matcher, LandmarkConfig(), WorkFolder(tmp_path / "work"))
        found.append(find(points, folder / "query.png"))
        counts.append((matcher.extracted, matcher.compared))
    assert counts == [(5, 6 + 4), (1, 4)]  # four photos and the query, six pairs of the map, four with the query
    np.testing.assert_array_equal(found[0].world_from_query, found[1].world_from_query)
    for file in (tmp_path / "work").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:50])  # damaged: made again
    capsys.readouterr()
    matcher = Counting()
    find(Landmarks(open_map(folder), matcher, LandmarkConfig(), WorkFolder(tmp_path / "work")), folder / "query.png")
    assert matcher.extracted == 5 and capsys.readouterr().err.count("is damaged") == 8
    # another pose is another map
    synthetic_maps.write_model(tmp_path, scale=2.0)
    moved = Counting()
    other = Landmarks(open_map(tmp_path, folder / "images"), moved, LandmarkConfig(), WorkFolder(tmp_path / "work"))
    find(other, folder / "query.png")
    assert (moved.extracted, moved.compared) == (1, 10)


def test_a_query_is_matched_once_whatever_its_camera(folder: Path) -> None:
    matcher = Counting()
    points = Landmarks(open_map(folder), matcher, LandmarkConfig(), WorkFolder(None))
    wide = Camera.pinhole(cameras.K_from_fov(80, CAMERA.width, CAMERA.height), CAMERA.width, CAMERA.height)
    found = [find(points, folder / "query.png", camera=camera) for camera in (wide, CAMERA)]
    assert (matcher.extracted, matcher.compared) == (5, 6 + 4) and found[1].inliers > found[0].inliers


class Upright(Counting):
    """Needs upright photos."""

    rotation_invariant = False


def test_retrieved_photos_decide_whether_a_rotated_query_is_matched_with_all(folder: Path, tmp_path: Path) -> None:
    matcher = Upright()
    points = Landmarks(open_map(folder), matcher, LandmarkConfig(), WorkFolder(None))
    alike = [(index, 0.9 - index / 10) for index in range(4)]

    def compared(file: Path, candidates: list, upright_only: bool = False) -> int:
        for index, _ in candidates:
            points.points(index)
        before = matcher.compared
        query = Query(read_photo(file), CAMERA, "given")
        found = localize(query, points, candidates, LocalizationConfig(), lambda rgb: candidates, upright_only)
        assert found.success == (file.name == "query.png")
        return matcher.compared - before

    elsewhere = folder / "elsewhere.png"
    assert compared(folder / "query.png", alike) == 4
    assert compared(elsewhere, alike, upright_only=True) == 4
    # in the three other turns the three photos most alike, of which none agrees
    assert compared(elsewhere, alike) == 3 * 3
    # photos of which it is not known how much they are alike are all matched
    shutil.copy(elsewhere, tmp_path / "copy.png")
    assert compared(tmp_path / "copy.png", [(index, None) for index in range(4)]) == 4 * 4


def test_features_of_a_reconstruction_are_those_of_its_map(folder: Path, tmp_path: Path) -> None:
    matcher, photo_map = Counting(), open_map(folder)
    cache = WorkFolder(tmp_path / "work")
    extract_features([image.file for image in photo_map.images], matcher, cache)
    assert matcher.extracted == len(photo_map.images)
    landmarks = Landmarks(photo_map, matcher, LandmarkConfig(), WorkFolder(tmp_path / "work"))
    assert len(landmarks.features(0).points) > 100 and matcher.extracted == len(photo_map.images)


def test_a_read_only_map_is_not_written_to(tmp_path: Path) -> None:
    work, note = open_work(None, tmp_path)
    assert work.folder == tmp_path / "dune-work" and note == ""
    work, note = open_work(None, Path("/proc"))
    assert work.folder is None and "--work" in note
    with pytest.raises(UserError):
        open_work("/proc/work", tmp_path)


def test_neighbours(points: Landmarks) -> None:
    photo_map = points.map
    assert sorted(matching_neighbours(photo_map, 0, 8)) == [1, 2, 3]
    assert len(matching_neighbours(photo_map, 0, 2)) == 2
    many = PhotoMap(
        photo_map.folder,
        tuple(replace(photo_map.images[0], neighbours=tuple(j for j in range(30) if j != i)) for i in range(30)),
        "metric",
        None,
    )
    chosen = matching_neighbours(many, 0, 8)
    assert chosen[:4] == [1, 2, 3, 4] and len(chosen) == 8 and chosen[-1] == 29


def test_without_an_image(points: Landmarks, folder: Path) -> None:
    smaller = points.without(1)
    assert [image.name for image in smaller.map.images] == ["a.png", "c.png", "d.png"]
    assert errors(find(smaller, folder / "query.png"))[1] < 0.05


# files


def test_neighbours_come_from_shared_points(folder: Path, tmp_path: Path) -> None:
    frusta = [Frustum(K, pose, 320, 240, name) for name, pose in synthetic_maps.POSES.items()]
    tracks = (
        [[(0, 10.0, 10.0), (2, 20.0, 20.0)]] * 20
        + [[(0, 5.0, 5.0), (1, 9.0, 9.0)]] * 30
        + [[(1, 1.0, 1.0), (2, 2.0, 2.0)]] * 3
    )
    for binary in (True, False):
        target = tmp_path / str(binary)
        write_colmap(target, frusta, np.ones((53, 3)), tracks=tracks, binary=binary)
        found = open_map(target, folder / "images")
        assert [image.neighbours for image in found.images] == [(1, 2), (0,), (0,), ()]


@pytest.mark.parametrize("place", ["", "images", "sparse/0"])
def test_where_photos_are_looked_for(folder: Path, tmp_path: Path, place: str) -> None:
    if place == "sparse/0":
        synthetic_maps.write_model(tmp_path / place)
        shutil.copytree(folder / "images", tmp_path / "images")
    else:
        synthetic_maps.write_model(tmp_path, binary=False)
        shutil.copytree(folder / "images", tmp_path / place, dirs_exist_ok=True)
    found = open_map(tmp_path)
    assert [image.name for image in found.images] == list(synthetic_maps.POSES)
    np.testing.assert_allclose(found.images[1].world_from_cam, synthetic_maps.POSES["b.png"], atol=1e-9)
    np.testing.assert_allclose(found.images[1].camera.K, K, atol=1e-9)
    assert found.scale == "arbitrary" and "--scale metric" in found.scale_note


def scene_json(folder: Path, scale: str = "metric") -> dict:
    cameras_ = [
        {
            "image": name,
            "width": 320,
            "height": 240,
            "K": K.tolist(),
            "world_from_cam": pose.tolist(),
            "registered": True,
        }
        for name, pose in synthetic_maps.POSES.items()
    ]
    cameras_.append({"image": "lost.png", "registered": False})
    inputs = [{"path": str(folder / "images" / name), "sha256": ""} for name in synthetic_maps.POSES]
    tree = {"schema": "dune.scene/1", "scale": scale, "cameras": cameras_, "provenance": {"inputs": inputs}}
    return tree | ({"scale_note": "no lengths"} if scale == "arbitrary" else {})


def test_a_scene_that_reconstruct_wrote(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "scene.json").write_text(json.dumps(scene_json(folder), indent=2))
    (tmp_path / "other.json").write_text("{}")
    found = open_map(tmp_path)  # its photos are where the scene saw them
    (tmp_path / "scene.ply").touch()
    for named in ("scene.json", "scene.ply"):
        again = open_map(tmp_path / named)
        assert [image.file for image in again.images] == [image.file for image in found.images]
        assert (again.folder, again.files) == (tmp_path, found.files)
    assert len(found.images) == 4 and (found.scale, found.scale_note) == ("metric", None)
    np.testing.assert_allclose(found.images[3].world_from_cam, synthetic_maps.POSES["d.png"])
    assert open_map(tmp_path, scale="arbitrary").scale == "arbitrary"
    (tmp_path / "scene.json").write_text(json.dumps(scene_json(folder, "arbitrary"), indent=2))
    assert open_map(tmp_path).scale_note == "no lengths"
    # beside a model, it says what its scale is
    synthetic_maps.write_model(tmp_path)
    (tmp_path / "scene.json").write_text(json.dumps(scene_json(folder), indent=2))
    assert open_map(tmp_path, folder / "images").scale == "metric"


def broken(path: Path, kind: str, folder: Path) -> None:
    synthetic_maps.write_model(path)
    if kind == "cut":
        file = path / "images.bin"
        file.write_bytes(file.read_bytes()[:100])
    elif kind == "garbage":
        (path / "cameras.bin").write_bytes(b"\xff" * 64)
    elif kind == "points":
        (path / "points3D.bin").write_bytes(b"\xff" * 64)
    elif kind == "text":
        for file in path.glob("*.bin"):
            file.unlink()
        for name in ("cameras", "images", "points3D"):
            (path / f"{name}.txt").write_text("1 2 hello\n")
    elif kind == "no cameras":
        (path / "cameras.bin").unlink()
    elif kind == "empty":
        write_colmap(path, [])


@pytest.mark.parametrize(
    "kind, words",
    [
        ("cut", "is broken"),
        ("garbage", "is broken"),
        ("points", "is broken"),
        ("text", "is broken"),
        ("no cameras", "images.bin without cameras.bin"),
        ("empty", "has no registered images"),
        ("photos", "4 of the map's 4 photos (a.png, b.png, c.png, ...) are not in"),
    ],
)
def test_maps_that_are_refused(folder: Path, tmp_path: Path, kind: str, words: str) -> None:
    broken(tmp_path, kind, folder)
    with pytest.raises(UserError) as caught:
        open_map(tmp_path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_folders_that_are_no_map(folder: Path, tmp_path: Path) -> None:
    for name, words in ((tmp_path / "none", "no folder"), (folder / "query.png", "a file"), (tmp_path, "holds no map")):
        with pytest.raises(UserError, match=words):
            open_map(name)
    with pytest.raises(UserError, match="--images"):
        open_map(folder, tmp_path / "none")
    (tmp_path / "scene.json").write_text('{"schema": "dune.scene/1", "cameras": [{"registered": true}]}')
    with pytest.raises(UserError, match="is broken"):
        open_map(tmp_path)
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text('{"schema": "dune.scene/1", "cameras": []}')
    with pytest.raises(UserError, match="several scenes"):
        open_map(tmp_path)


def test_photos_that_are_missing_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "images", tmp_path / "images")
    (tmp_path / "images" / "b.png").unlink()
    synthetic_maps.write_model(tmp_path)
    found = open_map(tmp_path)
    assert [image.name for image in found.images] == ["a.png", "c.png", "d.png"]
    assert "1 of the map's 4 photos are left out, they are not there: b.png" in capsys.readouterr().err


def test_photos_of_another_size_are_refused(folder: Path, tmp_path: Path, sift: Sift) -> None:
    import cv2

    synthetic_maps.write_model(tmp_path)
    for name in synthetic_maps.POSES:
        cv2.imwrite(str(tmp_path / name), cv2.imread(str(folder / "images" / name))[::2, ::2])
    points = Landmarks(open_map(tmp_path), sift, LandmarkConfig(), WorkFolder(None))
    with pytest.raises(UserError, match="160 x 120 px, but the model says 320 x 240"):
        find(points, folder / "query.png")
