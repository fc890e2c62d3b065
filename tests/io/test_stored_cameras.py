"""Cameras of photos that EXIF turns, from files that mean their stored pixels and from files that do not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dune_cli.geometry import poses
from dune_cli.io import orientation
from dune_cli.io.colmap.write import write_colmap
from dune_cli.io.meshes import Frustum
from dune_cli.io.photos import PhotoHeader, read_header, read_photo
from dune_cli.io.pose_files import OPENCV_FROM_OPENGL, GivenCamera, means_stored, read_poses
from support.odd_photos import save_turned

K = np.array([[50.0, 0, 31.5], [0, 50, 23.5], [0, 0, 1]])
POSE = poses.from_rotation_translation(poses.rotation_from_rotvec(np.array([0.3, -0.2, 0.1])), np.array([1.0, 2, 3]))
TAGS = (1, 3, 6, 8)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_a_photo_and_its_header_tell_how_it_is_stored(tmp_path: Path, ending: str, tag: int) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    save_turned(tmp_path / f"a.{ending}", upright, tag)
    photo = read_photo(tmp_path / f"a.{ending}")
    assert (photo.width, photo.height, photo.orientation) == (64, 48, tag) == (*photo.rgb.shape[1::-1], tag)
    assert photo.info.orientation == tag and read_header(photo.path) == PhotoHeader(64, 48, tag)
    if ending in ("png", "tif"):
        np.testing.assert_array_equal(photo.rgb, upright)


def test_headers_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe1\x00\x04Exif")
    assert read_header(tmp_path / "a.jpg") is None and read_header(tmp_path / "none.jpg") is None


@pytest.mark.parametrize(
    ("photo", "size", "kind", "stored"),
    [
        ((48, 64, 6), (64, 48), False, True),  # the size tells
        ((48, 64, 6), (48, 64), True, False),
        ((48, 64, 8), (640, 480), False, True),  # that of a larger copy, too
        ((48, 64, 6), None, True, True),
        ((64, 64, 6), (64, 64), True, True),  # square: the kind of file tells
        ((64, 64, 6), (64, 64), False, False),
        ((64, 48, 3), (64, 48), True, True),  # by 180 degrees: so, too
        ((64, 48, 3), (64, 48), False, False),
        ((64, 48, 1), (48, 64), True, False),
    ],
)
def test_whose_camera_it_is(
    photo: tuple[int, int, int], size: tuple[int, int] | None, kind: bool, stored: bool
) -> None:
    assert means_stored(GivenCamera(POSE, size, kind), PhotoHeader(*photo)) is stored


def written(folder: Path, kind: str, tag: int, stored: bool) -> Path:
    """The camera of photo.jpg in a file of a kind, of the stored or of the upright pixels."""
    if stored:
        camera = orientation.stored_camera(K, POSE, 64, 48, tag)
        K_own, pose, width, height = camera.K, camera.world_from_cam, camera.width, camera.height
    else:
        K_own, pose, width, height = K, POSE, 64, 48
    size = {"width": width, "height": height}
    if kind == "colmap":
        write_colmap(folder / "model", [Frustum(K_own, pose, width, height, "photo.jpg")])
        return folder / "model"
    matrix = pose.tolist()
    tree = {
        "names": {"photo.jpg": matrix},
        "scene": {"cameras": [{"image": "photo.jpg", "world_from_cam": matrix, **size}]},
        "stored scene": {
            "image_size_is": "stored",
            "cameras": [{"image": "photo.jpg", "world_from_cam": matrix}],
        },
        "cameras": {"frames": [{"file": "photo.jpg", "T_cam_to_world": matrix, **size}]},
        "transforms": {
            "w": width,
            "h": height,
            "frames": [{"file_path": "photo.jpg", "transform_matrix": (pose @ OPENCV_FROM_OPENGL).tolist()}],
        },
    }[kind]
    (folder / "poses.json").write_text(json.dumps(tree))
    return folder / "poses.json"


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        ("colmap", True),
        ("transforms", True),
        ("stored scene", True),
        ("scene", False),
        ("cameras", False),
        ("names", False),
    ],
)
def test_poses_are_those_of_the_upright_photo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, stored: bool, tag: int
) -> None:
    photo = tmp_path / "photo.jpg"
    save_turned(photo, np.zeros((48, 64, 3), np.uint8), tag)
    found = read_poses(written(tmp_path, kind, tag, stored), [str(photo)])
    np.testing.assert_allclose(found[str(photo)], POSE, atol=1e-12)
    told = capsys.readouterr().err
    assert ("EXIF turns photo.jpg" in told) == (tag != 1)
    assert tag == 1 or ("stored pixels" if stored else "upright photos") in told


@pytest.mark.parametrize(
    ("kind", "stored"), [("colmap", False), ("transforms", False), ("scene", True), ("cameras", True)]
)
@pytest.mark.parametrize("tag", [6, 8])
def test_the_size_of_a_camera_overrules_the_kind_of_file(tmp_path: Path, kind: str, stored: bool, tag: int) -> None:
    photo = tmp_path / "photo.jpg"
    save_turned(photo, np.zeros((48, 64, 3), np.uint8), tag)
    found = read_poses(written(tmp_path, kind, tag, stored), [str(photo)])
    np.testing.assert_allclose(found[str(photo)], POSE, atol=1e-12)


def test_a_mirrored_photo_gets_no_pose_of_stored_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(tmp_path / "photo.jpg"), str(tmp_path / "other.jpg")]
    save_turned(Path(names[0]), np.zeros((48, 64, 3), np.uint8), 5)
    save_turned(Path(names[1]), np.zeros((48, 64, 3), np.uint8), 1)
    write_colmap(tmp_path / "m", [Frustum(K, POSE, 48, 64, "photo.jpg"), Frustum(K, POSE, 64, 48, "other.jpg")])
    assert list(read_poses(tmp_path / "m", names)) == names[1:]
    assert "EXIF turns photo.jpg; the cameras are of mirrored pixels" in capsys.readouterr().err
