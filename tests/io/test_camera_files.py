"""Cameras with lenses in every form that --intrinsics takes, and what is refused in one sentence."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from dune_cli.errors import UserError
from dune_cli.geometry.camera_models import MODELS, Camera
from dune_cli.io.colmap.write import write_colmap
from dune_cli.io.intrinsics import PhotoCamera, resolve_cameras, resolve_intrinsics
from dune_cli.io.meshes import Frustum
from dune_cli.io.photos import PhotoInfo
from dune_cli.io.pose_files import read_known_cameras, write_transforms

PHOTO = PhotoInfo(Path("photos/a.jpg"), 720, 576, "0" * 64)
TERMS = (-0.28, 0.07, 0.001, -0.001)
OPENCV = Camera("OPENCV", (600.0, 602.0, 358.5, 286.5, *TERMS), 720, 576)
FISHEYE = Camera("OPENCV_FISHEYE", (400.0, 402.0, 358.5, 286.5, 0.02, -0.004, 0.001, -0.0002), 720, 576)
NUMBERS = "600,602,359,287,-0.28,0.07,0.001,-0.001"


def resolved(intrinsics: str | Path, photo: PhotoInfo = PHOTO) -> PhotoCamera:
    return resolve_cameras([photo], str(intrinsics), None)[0]


def same(found: PhotoCamera, camera: Camera) -> bool:
    close = found.camera.model == camera.model and np.allclose(found.camera.params, camera.params, atol=1e-9)
    return close and found.source == "given" and found.lens_known


def in_colmap(folder: Path, camera: Camera, binary: bool) -> Path:
    model = pycolmap.Reconstruction()
    theirs = pycolmap.Camera(
        model=camera.model, width=camera.width, height=camera.height, params=list(camera.colmap_params), camera_id=1
    )
    model.add_camera_with_trivial_rig(theirs)
    folder.mkdir()
    (model.write_binary if binary else model.write_text)(str(folder))
    return folder


@pytest.mark.parametrize(
    "text",
    [
        f"OPENCV,720,576,{NUMBERS}",
        f"OPENCV 720 576 {NUMBERS.replace(',', ' ')}",
        f"1 OPENCV 720 576 {NUMBERS.replace(',', ' ')}",
        f"opencv,{NUMBERS}",
    ],
)
def test_a_colmap_camera_in_words(text: str) -> None:
    assert same(resolved(text), OPENCV)


def test_numbers_say_nothing_of_the_lens_and_a_model_does() -> None:
    assert not resolved("600,602,358.5,286.5").lens_known
    pinhole = resolved("PINHOLE,600,602,359,287")
    assert pinhole.lens_known and np.array_equal(pinhole.K, OPENCV.K)
    one, two = resolve_cameras([PHOTO, PHOTO], f"OPENCV,720,576,{NUMBERS};600,602,358.5,286.5", None)
    assert one.lens_known and not two.lens_known


@pytest.mark.parametrize("binary", [True, False])
def test_files_of_colmap(tmp_path: Path, binary: bool) -> None:
    for number, camera in enumerate((OPENCV, FISHEYE)):
        folder = in_colmap(tmp_path / str(number), camera, binary)
        file = folder / ("cameras.bin" if binary else "cameras.txt")
        assert same(resolved(file), camera)
        for other in ("images", "points3D", "rigs", "frames"):
            file.with_stem(other).unlink()
        assert same(resolved(folder), camera)


def nerfstudio(camera: Camera) -> dict[str, object]:
    terms = dict(zip(camera.kind.parameters, camera.params))
    terms["fl_x"], terms["fl_y"] = terms.pop("fx"), terms.pop("fy")
    terms["cx"], terms["cy"] = terms["cx"] + 0.5, terms["cy"] + 0.5
    return {"camera_model": camera.model, "w": 720, "h": 576, **terms}


def test_transforms_json(tmp_path: Path) -> None:
    path = tmp_path / "transforms.json"
    for camera in (OPENCV, FISHEYE):
        path.write_text(json.dumps(nerfstudio(camera) | {"frames": [{"file_path": "x.jpg"}]}))
        assert same(resolved(path), camera)
    frames = [
        {"file_path": "photos/b.jpg", **nerfstudio(replace(OPENCV, params=(500.0, *OPENCV.params[1:])))},
        {"file_path": "photos/a.jpg", **nerfstudio(OPENCV)},
    ]
    path.write_text(json.dumps({"frames": frames}))
    assert same(resolved(path), OPENCV)


def test_our_own_json(tmp_path: Path) -> None:
    path = tmp_path / "K.json"
    camera = {"model": "OPENCV", "params": list(OPENCV.params), "width": 720, "height": 576}
    path.write_text(json.dumps({"a.jpg": camera}))
    assert same(resolved(path), OPENCV)
    scene = {"image": "a.jpg", "width": 720, "height": 576, "K": OPENCV.K.tolist(), "camera": camera}
    path.write_text(json.dumps({"schema": "dune.scene/1", "image_size_is": "upright", "cameras": [scene]}))
    assert same(resolved(path), OPENCV)


@pytest.mark.parametrize("suffix", ["yml", "xml", "json"])
def test_calibrations_that_opencv_writes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"camera.{suffix}"
    for camera, fisheye in ((OPENCV, 0), (FISHEYE, 1)):
        file = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
        file.write("image_width", 720)
        file.write("image_height", 576)
        file.write("fisheye_model", fisheye)
        file.write("camera_matrix", camera.K)
        file.write("distortion_coefficients", np.array(camera.distortion))
        file.release()
        assert same(resolved(path), camera)


def test_a_third_radial_term_of_opencv(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(
        "camera_matrix: {rows: 3, cols: 3, data: [600, 0, 358.5, 0, 602, 286.5, 0, 0, 1]}\n"
        "distortion_model: plumb_bob\ndistortion_coefficients: {data: [-0.28, 0.07, 1e-3, -1e-3, 0.01]}\n"
    )
    full = Camera("FULL_OPENCV", (*OPENCV.params, 0.01, 0.0, 0.0, 0.0), 720, 576)
    assert same(resolved(path), full)


EUROC = """T_BS: {{cols: 4, rows: 4, data: [0, 1]}}
resolution: [720, 576]
camera_model: pinhole
intrinsics: [{pinhole}]
distortion_model: radial-tangential
distortion_coefficients: [{terms}]
"""
ROS_MESSAGE = """height: 576
width: 720
distortion_model: plumb_bob
D: [{terms}, 0.0]
K: [600, 0, 358.5, 0, 602, 286.5, 0, 0, 1]
---
"""


def test_calibrations_of_other_tools(tmp_path: Path) -> None:
    pinhole, terms = ", ".join(map(repr, OPENCV.params[:4])), ", ".join(map(repr, TERMS))
    for number, text in enumerate((EUROC, ROS_MESSAGE * 2)):  # of a recorded topic, the first message
        path = tmp_path / f"{number}.yaml"
        path.write_text(text.format(pinhole=pinhole, terms=terms))
        assert same(resolved(path), OPENCV)


def test_matrices_alone_say_nothing_of_the_lens(tmp_path: Path) -> None:
    K = [[600.0, 0.0, 358.5], [0.0, 602.0, 286.5], [0.0, 0.0, 1.0]]
    by_columns = [600, 0, 0, 0, 602, 0, 358.5, 286.5, 1]  # Open3D
    for document in ({"K": K}, {"camera_matrix": K}, {"width": 720, "height": 576, "intrinsic_matrix": by_columns}):
        path = tmp_path / "camera.json"
        path.write_text(json.dumps(document))
        found = resolved(path)
        assert not found.lens_known and found.K.tolist() == K


def test_four_coefficients_of_an_unknown_kind_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "camera.json"
    document = {"K": OPENCV.K.tolist(), "D": [*TERMS]}
    path.write_text(json.dumps(document | {"fisheye_model": 0}))
    assert same(resolved(path), OPENCV) and not capsys.readouterr().err
    path.write_text(json.dumps(document))
    assert same(resolved(path), OPENCV)
    assert "are taken for k1, k2, p1, p2; for those of a fisheye lens" in capsys.readouterr().err


def test_the_field_of_view_of_synthetic_scenes(tmp_path: Path) -> None:
    path = tmp_path / "transforms_train.json"
    frames = [{"file_path": "./train/a", "transform_matrix": np.eye(4).tolist()}]
    path.write_text(json.dumps({"camera_angle_x": 2 * math.atan(720 / 2 / 600), "frames": frames}))
    found = resolved(path)
    assert not found.lens_known
    np.testing.assert_allclose(found.K, [[600, 0, 359.5], [0, 600, 287.5], [0, 0, 1]])
    _, entries = read_known_cameras(path, ["photos/a.png"])
    np.testing.assert_allclose(entries["photos/a.png"].camera(720, 576).K, found.K)


def test_photos_that_a_model_lacks_keep_their_own_cameras(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "1" / "cameras.txt"
    path.parent.mkdir()
    path.write_text(f"1 OPENCV 720 576 {NUMBERS.replace(',', ' ')}")
    other = replace(PHOTO, path=Path("photos/b.jpg"), width=640, height=512)  # of the same shape, but another camera
    one, two = resolve_cameras([PHOTO, other], str(path), None)
    assert same(one, OPENCV) and two.source == "default"
    assert "1 of 2 photos (b.jpg)" in capsys.readouterr().err
    path.write_text(path.read_text() + "\n2 PINHOLE 720 576 500 500 360 288\n")
    with pytest.raises(UserError, match="2 cameras"):  # the number of a camera is no folder's name
        resolved(path, replace(PHOTO, path=path.parent / "a.jpg"))


CHAIN = """cam0:
  camera_model: pinhole
  distortion_model: {lens}
  distortion_coeffs: [{terms}]
  intrinsics: [{pinhole}]
  resolution: [720, 576]
  rostopic: /cam0/image_raw
"""


def kalibr(camera: Camera, lens: str) -> str:
    pinhole, terms = (", ".join(map(repr, values)) for values in (camera.params[:4], camera.params[4:]))
    return CHAIN.format(lens=lens, terms=terms, pinhole=pinhole)


def test_kalibr(tmp_path: Path) -> None:
    path = tmp_path / "camchain.yaml"
    for camera, lens in ((OPENCV, "radtan"), (FISHEYE, "equidistant")):
        path.write_text(kalibr(camera, lens))
        assert same(resolved(path), camera)
    two = kalibr(OPENCV, "radtan") + kalibr(FISHEYE, "equidistant").replace("cam0", "cam1")
    path.write_text(two)
    with pytest.raises(UserError, match="has 2 cameras"):
        resolved(path)
    assert same(resolved(path, replace(PHOTO, path=Path("/data/cam1/a.jpg"))), FISHEYE)


def test_a_camera_of_another_size_is_scaled_and_the_note_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    half = replace(PHOTO, width=360, height=288)
    found = resolved(f"OPENCV,720,576,{NUMBERS}", half)
    np.testing.assert_allclose(found.camera.params, OPENCV.resized(360, 288).params)
    assert "scaled to 360 x 288 px" in capsys.readouterr().err
    with pytest.raises(UserError, match="another shape"):
        resolved(f"OPENCV,720,576,{NUMBERS}", replace(PHOTO, width=640, height=480))


def test_cameras_of_the_stored_pixels_are_turned() -> None:
    turned = replace(PHOTO, width=576, height=720, orientation=6)
    found = resolved(f"OPENCV,720,576,{NUMBERS}", turned)
    # orientation 6: the file's pixels turned clockwise by a quarter are the upright photo
    np.testing.assert_allclose(found.camera.params, OPENCV.turned(1).params)
    with pytest.raises(UserError, match="mirrored"):
        resolved(f"OPENCV,720,576,{NUMBERS}", replace(turned, orientation=5))


def test_what_takes_pinhole_cameras_only_refuses_a_lens() -> None:
    with pytest.raises(UserError, match=r"a\.jpg has the lens OPENCV.*undistort it first"):
        resolve_intrinsics([PHOTO], f"OPENCV,720,576,{NUMBERS}", None)
    K, source = resolve_intrinsics([PHOTO], "OPENCV,720,576,600,602,359,287,0,0,0,0", None)[0]
    assert source == "given" and K[0, 0] == 600


WORDS = [
    ("LYTRO,1,2,3", "model LYTRO is unknown"),
    ("OPENCV,720,576,600,602", "takes WIDTH, HEIGHT and its 8 parameters"),
    ("OPENCV,720,576,600,602,359,287,-0.28,0.07,0.001,x", "'x' among them"),
    ("OPENCV,720.5,576,600,602,359,287,0,0,0,0", "image size of 720.5 x 576"),
    ("OPENCV,720,576,nan,602,359,287,0,0,0,0", "not finite"),
    ("OPENCV,720,576,-600,602,359,287,0,0,0,0", "must be positive"),
    ("OPENCV,720,576,0.8,0.8,0.5,0.5,0,0,0,0", "not a share"),
    ("OPENCV,720,576,600,602,359,287,0,0,0,1e9", "which no lens has"),
    ("OPENCV,720,576,600,602,359,287,-9,0,0,0", "folds back within the photo"),
    ("EQUIRECTANGULAR,720,576,720,576", "is a panorama"),
]
FILES: list[tuple[str, str, str]] = [
    ("c.yaml", "a: [1", "no YAML that can be read"),
    ("c.yaml", "a: &x [1]\nb: *x", "references are not read"),
    ("c.yaml", "[" * 5000, "no YAML that can be read"),
    ("c.yaml", "a: [" + "1," * 200_000 + "]", "more than 100000 values"),
    ("c.yaml", "[1]: 2", "a key is a list"),
    ("c.yaml", "a: 1", "no camera_matrix"),
    ("c.yaml", "cam0: {camera_model: eucm, intrinsics: [5, 1, 600, 602, 358, 286]}", "alpha is 0 to 1"),
    ("c.yaml", "camera_matrix: [1, 2]", "must be 3 x 3"),
    ("c.yaml", "camera_matrix: [600, 1, 300, 0, 600, 200, 0, 0, 1]", "skew"),
    ("c.yaml", "camera_matrix: [600, 0, 300, 0, .nan, 200, 0, 0, 1]", "where numbers are needed"),
    ("c.yaml", kalibr(OPENCV, "radtan").replace("pinhole", "omni"), "camera_model omni"),
    ("c.yaml", kalibr(OPENCV, "radtan").replace("0.07, ", ""), "4 intrinsics and 3 distortion_coeffs"),
    ("c.xml", "<!DOCTYPE x [<!ENTITY a 'b'>]><opencv_storage/>", "document type"),
    ("c.xml", "<opencv_storage>", "no XML that can be read"),
    ("cameras.txt", "1 OPENCV 720 576 600", "8 parameters"),
    ("cameras.txt", "# nothing", "holds no cameras"),
    ("cameras.bin", "abc", "holds no cameras of COLMAP"),
    ("t.json", '{"frames": [{"file_path": "a.jpg"}]}', "no fl_x"),
    ("t.json", '{"fl_x": 600, "w": 720, "h": 576, "camera_model": "LYTRO"}', "camera_model LYTRO is not read"),
    ("t.json", '{"a.jpg": {"model": "OPENCV", "params": [1]}}', "8 parameters"),
    ("t.json", '{"a.jpg": {"model": "X", "params": [1]}}', "model X is unknown"),
]


@pytest.mark.parametrize(("text", "reason"), WORDS)
def test_words_that_are_no_camera(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as refusal:
        resolved(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("name", "content", "reason"), FILES)
def test_files_that_hold_no_camera(tmp_path: Path, name: str, content: str, reason: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=reason) as refusal:
        resolved(tmp_path / name)
    assert "\n" not in str(refusal.value)


def test_the_kinds_of_one_size_are_told_apart_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "cameras.txt"
    lines = [f"1 OPENCV 720 576 {NUMBERS.replace(',', ' ')}", "2 PINHOLE 640 480 500 500 320 240"]
    path.write_text("\n".join(lines))
    assert same(resolved(path), OPENCV)
    with pytest.raises(UserError, match="2 cameras"):
        resolved(path, replace(PHOTO, width=100, height=80))


# What is written is read again.

LENSES = {
    "PINHOLE": (),
    "SIMPLE_RADIAL": (-0.09,),
    "RADIAL": (-0.2, 0.05),
    "OPENCV": TERMS,
    "FULL_OPENCV": (*TERMS, 0.01, 0.02, 0.003, 0.001),
    "OPENCV_FISHEYE": FISHEYE.distortion,
    "RADIAL_FISHEYE": (-0.03, 0.003),
    "THIN_PRISM_FISHEYE": (-0.02, 0.003, 0.001, -0.0007, 0.0005, -0.0001, 0.002, -0.001),
    "FOV": (0.9,),
    "EUCM": (0.6, 1.1),
}


def lens(model: str) -> Camera:
    return Camera(model, ((600.0, 602.0)[: MODELS[model].focals] + (358.5, 286.5) + LENSES[model]), 720, 576)


@pytest.mark.parametrize("binary", [True, False])
def test_every_lens_of_a_colmap_model_comes_back(tmp_path: Path, binary: bool) -> None:
    cameras = [lens(model) for model in LENSES]
    frusta = [Frustum(camera.K, np.eye(4), 720, 576, f"{camera.model}.jpg") for camera in cameras]
    write_colmap(tmp_path, frusta, binary=binary, lenses=cameras)
    theirs = pycolmap.Reconstruction(str(tmp_path))
    for camera in cameras:
        assert same(resolved(tmp_path, replace(PHOTO, path=Path(f"{camera.model}.jpg"))), camera)
        image = theirs.find_image_with_name(f"{camera.model}.jpg")
        assert image.camera.model_name == camera.model
        np.testing.assert_allclose(image.camera.params, camera.colmap_params, atol=1e-9)
    poses, entries = read_known_cameras(tmp_path)
    assert set(poses) == set(entries) and {entry.model for entry in entries.values()} == set(LENSES)


@pytest.mark.parametrize("model", list(LENSES))
def test_transforms_json_holds_a_lens_or_refuses_it(tmp_path: Path, model: str) -> None:
    camera, path = lens(model), tmp_path / "transforms.json"
    view = Frustum(camera.K, np.eye(4), 720, 576, "a.jpg")
    if model in ("FULL_OPENCV", "THIN_PRISM_FISHEYE", "FOV", "EUCM"):
        with pytest.raises(UserError, match=f"has a lens {model}, which transforms.json does not hold"):
            write_transforms(path, [view], [tmp_path / "a.jpg"], lenses=[camera])
        return
    write_transforms(path, [view], [tmp_path / "a.jpg"], lenses=[camera])
    again = resolved(path, replace(PHOTO, path=tmp_path / "a.jpg")).camera
    pixels = np.random.default_rng(0).uniform((0, 0), (719, 575), (50, 2))
    np.testing.assert_allclose(again.project(camera.unproject(pixels)), pixels, atol=1e-6)


def test_fisheyes_beside_others_do_not_fit_into_one_transforms_json(tmp_path: Path) -> None:
    views = [Frustum(camera.K, np.eye(4), 720, 576) for camera in (OPENCV, FISHEYE)]
    with pytest.raises(UserError, match=r"do not fit into one transforms\.json"):
        write_transforms(tmp_path / "t.json", views, ["a.jpg", "b.jpg"], lenses=[OPENCV, FISHEYE])
