"""Cameras as `transforms.json`, the input of nerfstudio and many Gaussian splatting tools.

The file (nerfstudio, "Data conventions"), field by field:
- `camera_model`: "OPENCV", a pinhole with distortion `k1 k2 k3 p1 p2` (0 but for `k1`, COLMAP's SIMPLE_RADIAL term);
- `frames`: one object a photo, each with its own camera, for they may differ:
  - `file_path`: the photo, relative to the JSON's folder, with forward slashes;
  - `w`, `h`: the photo's size in pixels;
  - `fl_x`, `fl_y`: focal lengths in pixels;
  - `cx`, `cy`: the principal point in pixels from the photo's top left *corner*: ours, from the centre of the first
    pixel, plus a half, as COLMAP has it (nerfstudio shoots the ray of pixel (0, 0) through (0.5, 0.5));
  - `transform_matrix`: 4x4 `world_from_cam` with OpenGL camera axes (x right, y up, z backward), so columns 2 and 3 of
    ours change sign; the world is the scene's own, unchanged;
- `ply_file_path`: the scene's points in that world, where there are some, for splats to start from;
- `applied_transform`: the transform that was applied to the world, here the identity (3x4).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dune_cli.geometry.cameras import HALF_PIXEL
from dune_cli.io.json_files import write_json
from dune_cli.io.pose_files import OPENCV_FROM_OPENGL


class TransformsCamera(Protocol):
    """What a camera must have: size, `K` (3, 3) in its pixels, `world_from_cam` (4, 4) in OpenCV axes."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def K(self) -> np.ndarray: ...
    @property
    def world_from_cam(self) -> np.ndarray: ...


def write_transforms(
    path: str | Path,
    views: Sequence[TransformsCamera],
    image_paths: Sequence[str | Path],
    points_file: str | Path | None = None,
    radials: Sequence[float] | None = None,
) -> None:
    """Writes the registered `views`, whose photos are at `image_paths`. `points_file`: a PLY of the same world.
    `radials`: the radial distortion term of each photo; None for 0. ValueError for another number of photos."""
    path = Path(path)
    if len(views) != len(image_paths):
        raise ValueError(f"{len(views)} views for {len(image_paths)} photos")
    document: dict[str, Any] = {"camera_model": "OPENCV"}
    if points_file is not None:
        document["ply_file_path"] = _relative(points_file, path)
    document["applied_transform"] = np.eye(3, 4)
    terms = [0.0] * len(views) if radials is None else radials
    document["frames"] = [_frame(view, _relative(image, path), k) for view, image, k in zip(views, image_paths, terms)]
    write_json(path, document)


def _frame(view: TransformsCamera, file_path: str, radial: float) -> dict[str, Any]:
    K = np.asarray(view.K, np.float64)
    return {
        "file_path": file_path,
        "w": view.width,
        "h": view.height,
        "fl_x": K[0, 0],
        "fl_y": K[1, 1],
        "cx": K[0, 2] + HALF_PIXEL,
        "cy": K[1, 2] + HALF_PIXEL,
        "k1": float(radial),
        **dict.fromkeys(("k2", "k3", "p1", "p2"), 0.0),
        "transform_matrix": np.asarray(view.world_from_cam, np.float64) @ OPENCV_FROM_OPENGL + 0.0,
    }


def _relative(file: str | Path, path: Path) -> str:
    return Path(os.path.relpath(Path(file).absolute(), path.absolute().parent)).as_posix()
