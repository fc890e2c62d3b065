from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from dune_cli.errors import UserError
from dune_cli.io.colmap.write import write_colmap
from dune_cli.io.meshes import Frustum


def _camera(seed: int, name: str) -> Frustum:
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    pose = np.eye(4)
    pose[:3, :3] = rotation * np.sign(np.linalg.det(rotation))
    pose[:3, 3] = rng.normal(size=3)
    return Frustum(np.array([[500 + seed, 0, 320.25], [0, 510, 239.5], [0, 0, 1]]), pose, 640 + seed, 480, name)


CAMERAS = [_camera(1, "left.jpg"), _camera(2, "b.jpg"), _camera(3, "sub/bücher.jpg")]


def _observed(point: np.ndarray) -> list[tuple[int, float, float]]:
    seen = []
    for i, camera in enumerate(CAMERAS):
        x, y, z = camera.K @ (np.linalg.inv(camera.world_from_cam) @ [*point, 1])[:3]
        seen.append((i, x / z, y / z))
    return seen


@pytest.mark.parametrize("binary", [True, False])
def test_pycolmap_reads_the_same_cameras_and_points_back(binary: bool, tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal([0, 0, 5], size=(20, 3))
    colors = np.arange(60, dtype=np.uint8).reshape(20, 3)
    tracks = [_observed(point) if i % 2 else [] for i, point in enumerate(points)]
    write_colmap(tmp_path / "model", CAMERAS, points, colors, tracks, binary)
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".bin" if binary else ".txt"}
    model = pycolmap.Reconstruction(str(tmp_path / "model"))
    assert [image.name for _, image in sorted(model.images.items())] == [camera.name for camera in CAMERAS]
    for (_, image), camera in zip(sorted(model.images.items()), CAMERAS):
        back = model.cameras[image.camera_id]
        assert back.model.name == "PINHOLE" and (back.width, back.height) == (camera.width, camera.height)
        half_pixel = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
        assert np.allclose(back.calibration_matrix(), camera.K + half_pixel, atol=1e-9, rtol=0)
        cam_from_world = np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]])
        assert np.allclose(cam_from_world @ camera.world_from_cam, np.eye(4), atol=1e-9)
    for i, point in enumerate(points):
        back = model.points3D[i + 1]
        assert np.allclose(back.xyz, point, atol=1e-9) and np.array_equal(back.color, colors[i])
        assert back.track.length() == (3 if i % 2 else 0)
        for element in back.track.elements:  # the projection by COLMAP's own camera is where the track says
            image = model.images[element.image_id]
            seen = image.points2D[element.point2D_idx].xy
            assert np.allclose(image.project_point(back.xyz), seen, atol=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_images_with_equal_cameras_share_one(binary: bool, tmp_path: Path) -> None:
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    write_colmap(tmp_path, [replace(CAMERAS[i % 2], name=name) for i, name in enumerate(names)], binary=binary)
    model = pycolmap.Reconstruction(str(tmp_path))
    assert len(model.cameras) == 2
    assert [model.find_image_with_name(name).camera.width for name in names] == [641, 642, 641, 642]


def test_no_points(tmp_path: Path) -> None:
    for binary in (True, False):
        write_colmap(tmp_path / str(binary), CAMERAS, binary=binary)
        assert len(pycolmap.Reconstruction(str(tmp_path / str(binary))).images) == 3


def test_an_old_model_is_replaced_in_both_forms_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("mine")
    write_colmap(tmp_path, CAMERAS, binary=True)
    write_colmap(tmp_path, CAMERAS[:2], binary=False)
    assert len(pycolmap.Reconstruction(str(tmp_path)).images) == 2  # a stale .bin would be read before the .txt
    assert (tmp_path / "photo.jpg").read_text() == "mine" and not list(tmp_path.glob("*.bin"))


def test_names_with_spaces_need_the_binary_form(tmp_path: Path) -> None:
    camera = _camera(4, "with space.jpg")
    write_colmap(tmp_path / "model", [camera])
    assert pycolmap.Reconstruction(str(tmp_path / "model")).images[1].name == "with space.jpg"
    with pytest.raises(UserError, match="write the binary form"):  # pycolmap would read back "with"
        write_colmap(tmp_path / "text", [camera], binary=False)


def test_two_images_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"left\.jpg twice"):
        write_colmap(tmp_path, [CAMERAS[0], CAMERAS[0]])


def test_a_full_disk_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_colmap(tmp_path / "model", CAMERAS)
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        write_colmap(tmp_path / "model", CAMERAS[:2], np.zeros((100, 3)))
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_arrays_that_do_not_fit(tmp_path: Path) -> None:
    for wrong in (
        {"points": np.full((2, 3), np.nan)},
        {"points": np.zeros((2, 3)), "colors": np.zeros((1, 3), np.uint8)},
        {"points": np.zeros((2, 3)), "tracks": [[]]},
    ):
        with pytest.raises(ValueError):
            write_colmap(tmp_path / "model", CAMERAS, **wrong)
