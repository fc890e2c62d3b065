"""Cameras of every model with random parameters, out to COLMAP, nerfstudio, OpenCV and Kalibr and in again: points
project within 1e-6 pixels, by our models and by those libraries' own; what a format cannot hold is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from dune_cli.errors import UserError
from dune_cli.geometry.camera_models import MODELS, SPHERE, Camera
from dune_cli.io.colmap.write import write_colmap
from dune_cli.io.intrinsics import resolve_cameras
from dune_cli.io.meshes import Frustum
from dune_cli.io.photos import PhotoInfo
from dune_cli.io.pose_files import write_transforms

SIZE = (720, 576)
SEEDS = range(4)
NAMES = [name for name in MODELS if name != SPHERE]
NOT_IN_TRANSFORMS = {
    "FULL_OPENCV",
    "FOV",
    "THIN_PRISM_FISHEYE",
    "RAD_TAN_THIN_PRISM_FISHEYE",
    "SIMPLE_DIVISION",
    "DIVISION",
    "EUCM",
}
SPANS = {"k1": 0.05, "k": 0.05, "k2": 0.01, "k3": 0.002, "d1": 0.05, "d2": 0.01, "omega": 0.3, "alpha": 0.2}
POINTS = np.random.default_rng(9).uniform((-0.6, -0.5, 1), (0.6, 0.5, 1), (60, 3))


def random_camera(model: str, seed: int) -> Camera:
    rng = np.random.default_rng([NAMES.index(model), seed])
    middles = {"fx": 600, "fy": 600, "f": 600, "cx": 359.5, "cy": 287.5, "omega": 0.8, "alpha": 0.5, "beta": 1}
    widths = {"fx": 80, "fy": 80, "f": 80, "cx": 60, "cy": 60, "beta": 0.2} | SPANS
    params = [middles.get(name, 0) + widths.get(name, 5e-4) * rng.uniform(-1, 1) for name in MODELS[model].parameters]
    return Camera(model, tuple(map(float, params)), *SIZE)


def again(path: Path, name: str = "a.jpg") -> Camera:
    found = resolve_cameras([PhotoInfo(path.parent / name, *SIZE, "0" * 64)], str(path), None)[0]
    assert found.source == "given" and found.lens_known
    return found.camera


def same(camera: Camera, other: Camera) -> None:
    expected = other.project(POINTS)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(camera.project(POINTS), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(camera.project(2 * camera.unproject(expected)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_colmap(tmp_path: Path, binary: bool) -> None:
    cameras = {f"{model}-{seed}.jpg": random_camera(model, seed) for model in NAMES for seed in SEEDS}
    frusta = [Frustum(camera.K, np.eye(4), *SIZE, name) for name, camera in cameras.items()]
    write_colmap(tmp_path, frusta, binary=binary, lenses=list(cameras.values()))
    theirs = pycolmap.Reconstruction(str(tmp_path))
    for name, camera in cameras.items():
        same(again(tmp_path, name), camera)
        own = theirs.find_image_with_name(name).camera.img_from_cam(POINTS)
        np.testing.assert_allclose(own - 0.5, camera.project(POINTS), rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", NAMES)
def test_transforms_json(tmp_path: Path, model: str) -> None:
    for seed in SEEDS:
        camera, path = random_camera(model, seed), tmp_path / "transforms.json"
        arguments = path, [Frustum(camera.K, np.eye(4), *SIZE, "a.jpg")], [tmp_path / "a.jpg"]
        if model in NOT_IN_TRANSFORMS:
            with pytest.raises(UserError, match=f"has a lens {model}, which transforms.json does not hold"):
                write_transforms(*arguments, lenses=[camera])
        else:
            write_transforms(*arguments, lenses=[camera])
            same(again(path), camera)


@pytest.mark.parametrize("model", NAMES)
def test_our_own_json(tmp_path: Path, model: str) -> None:
    camera, path = random_camera(model, 0), tmp_path / "cameras.json"
    entry = {"model": model, "params": list(camera.params), "width": SIZE[0], "height": SIZE[1]}
    path.write_text(json.dumps({"a.jpg": entry}))
    same(again(path), camera)


@pytest.mark.parametrize("count", [0, 4, 5, 8, 12, 14])
def test_opencv(tmp_path: Path, count: int) -> None:
    for seed in SEEDS:
        path, pinhole = tmp_path / "camera.yml", random_camera("PINHOLE", seed)
        terms = np.random.default_rng(seed).uniform(-1, 1, 14) * (
            [0.05, 0.01, 1e-3, 1e-3, 2e-3, 0.05, 0.01, 2e-3, *[0] * 6]
        )
        theirs, _ = cv2.projectPoints(POINTS, np.zeros(3), np.zeros(3), pinhole.K, terms[:count])
        np.testing.assert_allclose(opencv_file(path, pinhole.K, terms[:count]).project(POINTS), theirs[:, 0], atol=1e-6)
        terms[8:] = 1e-3
        if count > 8:
            with pytest.raises(UserError, match="terms of a thin prism, a tilted sensor"):
                opencv_file(path, pinhole.K, terms[:count])


def opencv_file(path: Path, K: np.ndarray, terms: np.ndarray, **more: int) -> Camera:
    file = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    values = {"image_width": SIZE[0], "image_height": SIZE[1], "camera_matrix": K, "distortion_coefficients": terms}
    for name, value in (values | more).items():
        file.write(name, value)
    file.release()
    return again(path)


def test_opencv_fisheye(tmp_path: Path) -> None:
    for seed in SEEDS:
        camera = random_camera("OPENCV_FISHEYE", seed)
        terms = np.array(camera.distortion)
        found = opencv_file(tmp_path / "camera.yml", camera.K, terms, fisheye_model=1)
        theirs, _ = cv2.fisheye.projectPoints(POINTS[:, None], np.zeros(3), np.zeros(3), camera.K, terms)
        np.testing.assert_allclose(found.project(POINTS), theirs[:, 0], rtol=0, atol=1e-6)
        same(found, camera)


KALIBR = {  # model -> camera model, distortion model, how many of the last parameters stand before the pinhole's
    "PINHOLE": ("pinhole", "none", 0),
    "OPENCV": ("pinhole", "radtan", 0),
    "OPENCV_FISHEYE": ("pinhole", "equidistant", 0),
    "FOV": ("pinhole", "fov", 0),
    "EUCM": ("eucm", "none", 2),
}


@pytest.mark.parametrize("model", list(KALIBR))
def test_kalibr(tmp_path: Path, model: str) -> None:
    name, distortion, first = KALIBR[model]
    for seed in SEEDS:
        camera, path = random_camera(model, seed), tmp_path / "chain.yaml"
        pinhole, terms = list(camera.params[:4]), list(camera.distortion)
        intrinsics, coefficients = (terms + pinhole, []) if first else (pinhole, terms)
        path.write_text(
            f"cam0:\n  camera_model: {name}\n  intrinsics: {intrinsics}\n  distortion_model: {distortion}\n"
            f"  distortion_coeffs: {coefficients}\n  resolution: {list(SIZE)}\n"
        )
        same(again(path), camera)
    for wrong in ("omni", "ds"):
        path.write_text(path.read_text().replace(f"camera_model: {name}", f"camera_model: {wrong}"))
        with pytest.raises(UserError, match="allowed: pinhole with radtan, equidistant, fov or none") as refusal:
            again(path)
        assert "\n" not in str(refusal.value)
        name = wrong


def test_turned_and_resized_cameras_come_back(tmp_path: Path) -> None:
    """The photos of one camera in portrait, and at another size."""
    for model in NAMES:
        camera = random_camera(model, 1)
        assert camera.turned(1).turned(3).params == pytest.approx(camera.params, abs=1e-9)
        same(replace(camera.resized(1440, 1152), width=1440).resized(*SIZE), camera)
