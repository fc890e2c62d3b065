"""Calibrations of other tools, and COLMAP cameras in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dune_cli.io.colmap.write import write_colmap
from dune_cli.io.intrinsics import PhotoCamera, resolve_cameras
from dune_cli.io.meshes import Frustum
from dune_cli.io.photos import PhotoInfo
from fuzz.harness import Sample

PHOTOS = [PhotoInfo(Path("photos/a.jpg"), 640, 480, "0" * 64)]
OPENCV_YAML = """%YAML:1.0
---
image_width: 640
image_height: 480
camera_matrix: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 500., 0., 319.5, 0., 510., 239.5, 0., 0., 1. ]
distortion_coefficients: !!opencv-matrix
   rows: 5
   cols: 1
   dt: d
   data: [ -0.2, 0.05, 0.001, -0.001, 0.01 ]
"""
OPENCV_XML = """<?xml version="1.0"?>
<opencv_storage>
<image_width>640</image_width>
<image_height>480</image_height>
<camera_matrix type_id="opencv-matrix"><rows>3</rows><cols>3</cols><dt>d</dt>
  <data>500. 0. 319.5 0. 510. 239.5 0. 0. 1.</data></camera_matrix>
<distortion_coefficients type_id="opencv-matrix"><rows>4</rows><cols>1</cols><dt>d</dt>
  <data>-0.2 0.05 0.001 -0.001</data></distortion_coefficients>
</opencv_storage>
"""
KALIBR = """cam0:
  T_cam_imu:
  - [1.0, 0.0, 0.0, 0.0]
  camera_model: pinhole
  distortion_coeffs: [-0.02, 0.005, -0.001, 0.0002]
  distortion_model: equidistant
  intrinsics: [400.0, 401.0, 319.5, 239.5]
  resolution: [640, 480]
  rostopic: /cam0/image_raw
"""
FRAME = {"file_path": "photos/a.jpg", "w": 640, "h": 480, "fl_x": 500.0, "fl_y": 510.0, "cx": 320.0, "cy": 240.0}
CAMERA = {"model": "FULL_OPENCV", "params": [500.0, 510.0, 319.5, 239.5, -0.2, 0.05, 0, 0, 0.01, 0, 0, 0]}


def samples(folder: Path) -> Sequence[Sample]:
    pinhole = np.array([[500.0, 0, 319.5], [0, 510.0, 239.5], [0, 0, 1]])
    write_colmap(folder / "model", [Frustum(pinhole, np.eye(4), 640, 480, "photos/a.jpg")])
    model = {f"model/{name}": (folder / "model" / name).read_bytes() for name in ("cameras.bin", "images.bin")}
    points = {"model/points3D.bin": (folder / "model" / "points3D.bin").read_bytes()}
    document = {"camera_model": "OPENCV", "frames": [FRAME | {"k1": -0.2, "k2": 0.05, "p1": 0.001}]}
    files = {
        "camera.yml": OPENCV_YAML.encode(),
        "camera.xml": OPENCV_XML.encode(),
        "camchain.yaml": KALIBR.encode(),
        "transforms.json": json.dumps(document).encode(),
        "K.json": json.dumps({"a.jpg": CAMERA}).encode(),
        "cameras.txt": b"1 OPENCV 640 480 500 510 320 240 -0.2 0.05 0.001 -0.001\n",
        "cameras.bin": model["model/cameras.bin"],
    }
    kinds = {"camera.yml": "text", "camera.xml": "text", "camchain.yaml": "text"}
    whole = [
        Sample({name: data}, lambda case, name=name: _resolved(str(case / name)), _is_camera, kinds=kinds)
        for name, data in files.items()
    ]
    words = b"OPENCV,640,480,500,510,320,240,-0.2,0.05,0.001,-0.001"
    return [
        *whole,
        Sample(model | points, lambda case: _resolved(str(case / "model")), _is_camera),
        Sample({"words.txt": words}, lambda case: _resolved(_text(case / "words.txt")), _is_camera),
    ]


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogateescape")  # as a command line gives it


def _resolved(intrinsics: str) -> PhotoCamera:
    return resolve_cameras(PHOTOS, intrinsics, None)[0]


def _is_camera(found: PhotoCamera) -> None:
    assert found.source == "given" and (found.camera.width, found.camera.height) == (640, 480)
    assert np.isfinite(found.camera.params).all() and 20 < found.K[0, 0] < 1e8 and 20 < found.K[1, 1] < 1e8
    rays = found.camera.unproject(np.array([[319.5, 239.5], [100.0, 100.0], [600.0, 400.0]]))
    known = np.isfinite(rays).all(-1)
    assert np.allclose(np.linalg.norm(rays[known], axis=-1), 1)
