"""COLMAP models are read as pycolmap reads them, quickly, and refused with one sentence where they are broken."""

from __future__ import annotations

import os
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from dune_cli.errors import UserError
from dune_cli.io.colmap.read import open_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with rigs of two cameras as bin/ and txt/; and without rigs and frames as old/."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig, options.num_points3D = 2, 2, 3, 20
    pycolmap.set_random_seed(0)
    model = pycolmap.synthesize_dataset(options)
    folder = tmp_path_factory.mktemp("models")
    for name in ("bin", "txt", "old"):
        (folder / name).mkdir()
    model.write_binary(str(folder / "bin"))
    model.write_text(str(folder / "txt"))
    model.write_binary(str(folder / "old"))
    for name in ("rigs.bin", "frames.bin"):
        (folder / "old" / name).unlink()
    return folder


@pytest.mark.parametrize("form", ["bin", "txt", "old"])
def test_a_model_is_what_pycolmap_reads(models: Path, form: str) -> None:
    theirs, ours = pycolmap.Reconstruction(str(models / form)), open_model(models / form)
    assert set(ours.images) == set(theirs.images) and len(ours.images) == 12
    for id, image in ours.images.items():
        their = theirs.images[id]
        assert image.name == their.name and image.camera.camera_id == their.camera_id
        assert image.camera.model_name == their.camera.model_name
        assert np.allclose(image.camera.params, their.camera.params)
        assert (image.camera.width, image.camera.height) == (their.camera.width, their.camera.height)
        assert np.allclose(image.cam_from_world[:3], their.cam_from_world().matrix(), atol=1e-12)
        assert np.allclose(image.world_from_cam @ image.cam_from_world, np.eye(4), atol=1e-12)
    points = list(theirs.points3D.values())
    assert sorted(map(tuple, ours.xyz)) == sorted(tuple(point.xyz) for point in points)
    assert len(ours.seen_by) == sum(point.track.length() for point in points)
    for index, xyz in enumerate(ours.xyz):
        point = next(point for point in points if tuple(point.xyz) == tuple(xyz))
        seen = ours.seen_by[ours.seen_point == index]
        assert sorted(seen) == sorted(element.image_id for element in point.track.elements)


def test_every_camera_model_has_its_number_and_parameters() -> None:
    from dune_cli.io.colmap.records import MODELS

    theirs = {}
    for name, number in pycolmap.CameraModelId.__members__.items():
        if name != "INVALID":
            camera = pycolmap.Camera.create_from_model_name(1, name, 1.0, 10, 10)
            focals = list(camera.focal_length_idxs())
            assert focals == list(range(len(focals)))
            theirs[int(number)] = (name, len(camera.params), len(focals))
    assert theirs.items() <= MODELS.items()


def _float(place: int, value: float) -> tuple[int, bytes]:
    return place, struct.pack("<d", value)


NAN = float("nan")


@pytest.mark.parametrize(
    ("file", "place", "value", "words"),
    [
        # cameras.bin: count 8, then id 4, model 4, width 8, height 8, f cx cy k
        ("cameras.bin", *_float(32, 0.0), "focal length of 0 px"),
        ("cameras.bin", *_float(32, -1280.0), "focal length of -1280 px"),
        ("cameras.bin", *_float(32, NAN), "not finite"),
        ("cameras.bin", 16, bytes(8), "0 x 768 px"),
        ("cameras.bin", 16, b"\xff" * 8, "a side are possible"),
        ("cameras.bin", 12, b"\x63", "unknown model number 99"),
        ("cameras.bin", 0, b"\xff" * 8, "more than its bytes hold"),
        ("cameras.bin", 0, b"\x03", "bytes follow"),
        # images.bin: count 8, id 4, quaternion 32, translation 24, camera 4
        ("images.bin", 12, bytes(32), "quaternion of length 0"),
        ("images.bin", *_float(44, NAN), "not finite"),
        ("images.bin", *_float(44, 1e300), "beyond"),
        ("images.bin", 68, b"\x63", "camera 99, which is not there"),
        ("images.bin", 0, b"\xff" * 8, "more than its bytes hold"),
        # points3D.bin: count 8, id 8, xyz 24, rgb 3, error 8, length 8, then image 4, keypoint 4
        ("points3D.bin", *_float(16, NAN), "points that are not finite"),
        ("points3D.bin", 51, b"\xff" * 8, "more than its bytes hold"),
        ("points3D.bin", 59, b"\x63\0\0\0", "images that are not there"),
        ("points3D.bin", 63, b"\xff\xff\0\0", "keypoints that their images do not have"),
        # rigs.bin: count 8, id 4, sensors 4, type 4, id 4; frames.bin: count 8, id 4, rig 4, pose 56, count 4, ...
        ("rigs.bin", 0, b"\xff" * 8, "more than its bytes hold"),
        ("rigs.bin", 12, b"\xff" * 4, "more than its bytes hold"),
        ("rigs.bin", 20, b"\x63", "camera 99, which is not there"),
        ("frames.bin", 0, b"\xff" * 8, "more than its bytes hold"),
        ("frames.bin", 72, b"\xff" * 4, "more than its bytes hold"),
        ("frames.bin", 12, b"\x63", "rig 99, which is not there"),
        ("frames.bin", *_float(48, 5.0), "elsewhere than images does"),
        ("frames.bin", *_float(48, NAN), "not finite"),
    ],
)
def test_a_broken_model_is_one_sentence(
    models: Path, tmp_path: Path, file: str, place: int, value: bytes, words: str
) -> None:
    shutil.copytree(models / "bin", tmp_path / "m")
    data = bytearray((tmp_path / "m" / file).read_bytes())
    data[place : place + len(value)] = value
    (tmp_path / "m" / file).write_bytes(data)
    with pytest.raises(UserError, match=words) as caught:
        open_model(tmp_path / "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("cameras.txt", "SIMPLE_RADIAL", "SIMPLE_RADIALS", "unknown model"),
        ("cameras.txt", " 1280 512 384", " 1280 512", "has 4 parameters, not 3"),
        ("cameras.txt", "\n1 ", "\n-1 ", "whole number"),
        ("images.txt", " 1 camera", " 9 camera", "camera 9, which is not there"),
        ("points3D.txt", "\n1 ", "\n1 nan ", "not in pairs"),
        ("rigs.txt", "1 2 CAMERA", "1 3 CAMERA", "counts 3 sensors and names 2"),
        ("frames.txt", "CAMERA 1 1", "RADAR 1 1", "unknown type"),
        ("frames.txt", "CAMERA 1 1", "CAMERA 1", "words of them"),
    ],
)
def test_a_broken_text_model_is_one_sentence(
    models: Path, tmp_path: Path, file: str, old: str, new: str, words: str
) -> None:
    shutil.copytree(models / "txt", tmp_path / "m")
    text = (tmp_path / "m" / file).read_text()
    assert old in text
    (tmp_path / "m" / file).write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=words):
        open_model(tmp_path / "m")


def test_a_model_must_be_there_whole(models: Path, tmp_path: Path) -> None:
    for name in ("cameras", "points3D", "rigs", "frames"):
        shutil.copytree(models / "bin", tmp_path / name)
        (tmp_path / name / f"{name}.bin").unlink()
        with pytest.raises(UserError, match=f"without {name}.bin"):
            open_model(tmp_path / name)
    shutil.copytree(models / "bin", tmp_path / "fifo")
    (tmp_path / "fifo" / "frames.bin").unlink()
    os.mkfifo(tmp_path / "fifo" / "frames.bin")
    with pytest.raises(UserError, match="not a regular file"):
        open_model(tmp_path / "fifo")


@pytest.mark.parametrize("form", ["bin", "txt"])
def test_a_large_model_takes_seconds(form: str, tmp_path: Path) -> None:
    """200 images of 1,000 keypoints here; ten times as many take ten times as long."""
    rng = np.random.default_rng(0)
    images, keypoints, points = 200, 1000, 20_000
    if form == "bin":
        camera = struct.pack("<QIiQQ4d", 1, 1, 1, 640, 480, 500, 500, 320, 240)
        (tmp_path / "cameras.bin").write_bytes(camera)
        seen = np.zeros(keypoints, np.dtype([("xy", "<f8", 2), ("point", "<u8")])).tobytes()
        heads = [struct.pack("<I7dI", i, 1, 0, 0, 0, 0, 0, 0, 1) + f"{i}.jpg\0".encode() for i in range(images)]
        rows = [head + struct.pack("<Q", keypoints) + seen for head in heads]
        (tmp_path / "images.bin").write_bytes(struct.pack("<Q", images) + b"".join(rows))
        track = rng.integers(0, images, (points, 10, 2)).astype("<u4")
        cloud = [struct.pack("<Q3d3BdQ", i, 1, 2, 3, 0, 0, 0, 0.5, 10) + track[i].tobytes() for i in range(points)]
        (tmp_path / "points3D.bin").write_bytes(struct.pack("<Q", points) + b"".join(cloud))
    else:
        (tmp_path / "cameras.txt").write_text("1 PINHOLE 640 480 500 500 320 240\n")
        seen_line = "1.25 2.5 -1 " * keypoints
        (tmp_path / "images.txt").write_text(
            "".join(f"{i} 1 0 0 0 0 0 0 1 {i}.jpg\n{seen_line}\n" for i in range(images))
        )
        track = " ".join("1 2" for _ in range(10))
        (tmp_path / "points3D.txt").write_text("".join(f"{i} 1 2 3 0 0 0 0.5 {track}\n" for i in range(points)))
    start = time.process_time()
    model = open_model(tmp_path)
    seconds = time.process_time() - start
    print(form, seconds)
    assert len(model.images) == images and len(model.seen_by) == points * 10 and seconds < 5
