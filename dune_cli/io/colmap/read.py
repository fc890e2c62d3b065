"""COLMAP models, binary or text: read to the last byte and checked for consistency.

pycolmap's readers trust the counts in a file and hang on truncated or damaged ones, so they are not used.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.geometry.poses import from_rotation_translation, inverse, rotation_from_quaternion
from dune_cli.io.camera_checks import FARTHEST, FOCAL_PER_SIDE, LARGEST_SIDE_PX
from dune_cli.io.colmap import records
from dune_cli.io.colmap.records import CAMERA_SENSOR, FOCALS, Broken, CameraRow, FrameRow, ImageRow, PointTable, RigRow
from dune_cli.io.safe_read import MIB, open_regular, read_bytes, read_text

SMALLEST_IMAGE_BYTES = 72  # of images.bin: id, pose, camera, an empty name, no points
TABLES = ("cameras", "images", "points3D", "rigs", "frames")
BINARY_LIMIT_BYTES, TEXT_LIMIT_BYTES = 4096 * MIB, 512 * MIB
SAME_POSE = 1e-3  # between a frame's pose and its images', relative to the translation


@dataclass(frozen=True)
class ColmapCamera:
    """A camera of COLMAP's model `model_name` with its `params` in COLMAP's pixels (corner at 0, 0)."""

    camera_id: int
    model_name: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(frozen=True)
class ColmapImage:
    """A registered image: `cam_from_world` and `world_from_cam` (4, 4) float64 in OpenCV axes."""

    image_id: int
    name: str
    camera: ColmapCamera
    cam_from_world: np.ndarray

    @property
    def world_from_cam(self) -> np.ndarray:
        return inverse(self.cam_from_world)


@dataclass(frozen=True)
class ColmapModel:
    """`images` by id; `xyz` (P, 3) of the points in the world. `seen_point` and `seen_by` (T,): the index of the point
    and the id of the image of each observation."""

    images: dict[int, ColmapImage]
    xyz: np.ndarray
    seen_point: np.ndarray
    seen_by: np.ndarray


def open_model(folder: str | Path) -> ColmapModel:
    """The model (binary or text) in `folder`, or below it where `model_folder` finds one.

    UserError for no model, for files over 4 GiB (text: 512 MiB), and for a broken model: files that are not in COLMAP's
    format to the last byte, invalid cameras, poses or points, or files that do not fit each other.
    """
    model = model_folder(folder)
    if model is None:
        raise UserError(f"{folder} holds no COLMAP model; name that of cameras, images and points3D (.bin, .txt)")
    rows = _read(model)
    try:
        cameras = _cameras(rows["cameras"])
        images = _images(rows["images"], cameras)
        _check_points(rows["points3D"], rows["images"])
        if rows["rigs"] is not None:
            _check_frames(rows["rigs"], rows["frames"], cameras, images)
    except Broken as error:
        raise UserError(f"the COLMAP model in {model} is broken ({error}); copy it again or write it anew") from error
    points: PointTable = rows["points3D"]
    return ColmapModel(
        images, points.xyz, np.repeat(np.arange(len(points.ids)), np.diff(points.starts)), points.track[:, 0]
    )


def read_cameras(path: str | Path) -> dict[int, ColmapCamera]:
    """The cameras, by their id, of a cameras.bin or cameras.txt alone. UserError for another file, and a broken one."""
    path = Path(path)
    try:
        if path.suffix.lower() == ".bin":
            rows = records.read_binary("cameras", read_bytes(path, "a COLMAP model's file", TEXT_LIMIT_BYTES))
        else:
            rows = records.read_text("cameras", read_text(path, "a COLMAP model's file", TEXT_LIMIT_BYTES))
        cameras = _cameras(rows)
    except (Broken, struct.error, OverflowError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} holds no cameras of COLMAP ({reason}); give a cameras.txt or cameras.bin") from error
    if not cameras:
        raise UserError(f"{path} holds no cameras; give a cameras.txt or cameras.bin that has some")
    return cameras


def model_folder(folder: str | Path) -> Path | None:
    """`folder` itself if it has an images file, else the model below it where COLMAP's tools write one: sparse/0,
    sparse/1, ..., sparse, or 0, 1, ...; None without one. Of several numbered models the one with the most images is
    taken, and a note lists how many images each has."""
    folder = Path(folder).expanduser()
    if _is_model(folder):
        return folder
    for parent in (folder / "sparse", folder):
        models = sorted((path for path in _inside(parent) if path.name.isdecimal() and _is_model(path)), key=_number)
        if models:
            return _largest(folder, models)
        if _is_model(parent):
            return parent
    return None


def model_files(model: Path) -> list[Path]:
    """The files that `open_model` reads of the model in a folder."""
    ending = "bin" if (model / "images.bin").is_file() else "txt"
    return [path for path in (model / f"{name}.{ending}" for name in TABLES) if path.exists()]


def _largest(folder: Path, models: Sequence[Path]) -> Path:
    counts = [_count_images(model) for model in models]
    best = models[int(np.argmax(counts))]
    if len(models) > 1:
        each = ", ".join(f"{model.relative_to(folder)} ({count})" for model, count in zip(models, counts))
        console.note(
            f"{folder} holds {len(models)} models (images in each: {each}); {best.relative_to(folder)} is taken, name "
            "the folder of another one to use that"
        )
    return best


def _count_images(model: Path) -> int:
    """The number of images that a model states; 0 if that cannot be read (`open_model` reports why)."""
    try:
        if (model / "images.bin").is_file():
            with open_regular(model / "images.bin", "a COLMAP model's file") as file:
                (count,) = struct.unpack("<Q", file.read(8))
            return count if count * SMALLEST_IMAGE_BYTES <= (model / "images.bin").stat().st_size else 0
        text = read_text(model / "images.txt", "a COLMAP model's file", TEXT_LIMIT_BYTES)
        lines = text.count("\n") + (not text.endswith("\n")) - text.count("\n#") - text.startswith("#")
        return (lines + 1) // 2  # an image's second line may be empty
    except (UserError, OSError, struct.error):
        return 0


def _is_model(folder: Path) -> bool:
    return any((folder / f"images.{end}").is_file() for end in ("bin", "txt"))


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _number(path: Path) -> int:
    return int(path.name)


def _read(model: Path) -> dict[str, Any]:
    """The rows of each file; None for rigs and frames if there are none (before COLMAP 3.12)."""
    binary = (model / "images.bin").is_file()
    ending = "bin" if binary else "txt"
    rows: dict[str, Any] = {}
    for name in TABLES:
        path = model / f"{name}.{ending}"
        if not path.exists():
            rows[name] = None
            continue
        try:
            if binary:
                data = read_bytes(path, "a COLMAP model's file", BINARY_LIMIT_BYTES)
                rows[name] = records.read_binary(name, data)
            else:
                text = read_text(path, "a COLMAP model's file (a larger one as .bin)", TEXT_LIMIT_BYTES)
                rows[name] = records.read_text(name, text)
        except (Broken, struct.error, OverflowError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the COLMAP model's {path} is broken ({reason}); copy it again or write it anew"
            ) from error
    present = [name for name, table in rows.items() if table is not None]
    lacking = [name for name in ("cameras", "images", "points3D") if name not in present]
    lacking += [
        name for name in ("rigs", "frames") if len({"rigs", "frames"} & set(present)) == 1 and name not in present
    ]
    if lacking:
        raise UserError(
            f"the COLMAP model in {model} has {present[0]}.{ending} without {lacking[0]}.{ending}; copy it again whole"
        )
    return rows


def _cameras(rows: Sequence[CameraRow]) -> dict[int, ColmapCamera]:
    cameras: dict[int, ColmapCamera] = {}
    for row in rows:
        what = f"the camera {row.id}"
        if row.id in cameras:
            raise Broken(f"{what} is there twice")
        if not (0 < row.width <= LARGEST_SIDE_PX and 0 < row.height <= LARGEST_SIDE_PX):
            raise Broken(f"{what} has {row.width} x {row.height} px; 1 to {LARGEST_SIDE_PX} a side are possible")
        side = max(row.width, row.height)
        if not np.isfinite(row.params).all() or max(map(abs, row.params)) > FOCAL_PER_SIDE[1] * side:
            raise Broken(f"{what} has parameters that are not finite or absurdly large")
        for focal in row.params[: FOCALS[row.model]]:
            if not FOCAL_PER_SIDE[0] <= focal / side <= FOCAL_PER_SIDE[1]:
                raise Broken(f"{what} has a focal length of {focal:g} px for {row.width} x {row.height} px")
        cameras[row.id] = ColmapCamera(row.id, row.model, row.width, row.height, row.params)
    return cameras


def _images(rows: Sequence[ImageRow], cameras: dict[int, ColmapCamera]) -> dict[int, ColmapImage]:
    images: dict[int, ColmapImage] = {}
    names: set[str] = set()
    for row in rows:
        what = f"the image {row.id}"
        if row.id in images:
            raise Broken(f"{what} is there twice")
        if not row.name or row.name in names:
            raise Broken(f"the name {row.name[:100]!r} belongs to two images" if row.name else f"{what} has no name")
        if row.camera_id not in cameras:
            raise Broken(f"{what} is of the camera {row.camera_id}, which is not there")
        if not np.isfinite(row.keypoints).all():
            raise Broken(f"{what} has keypoints that are not finite")
        names.add(row.name)
        images[row.id] = ColmapImage(row.id, row.name, cameras[row.camera_id], _pose(row.pose, what))
    return images


def _pose(values: Sequence[float], what: str) -> np.ndarray:
    """(4, 4) of qw qx qy qz tx ty tz."""
    if not all(abs(value) <= FARTHEST for value in values):
        raise Broken(f"{what} has a pose that is not finite, or beyond {FARTHEST:g}")
    length = math.hypot(*values[:4])
    if abs(length - 1) > 1e-2:
        raise Broken(f"{what} has a quaternion of length {length:.3g}, not 1")
    return from_rotation_translation(rotation_from_quaternion(values[:4]), values[4:])


def _check_points(points: PointTable, images: Sequence[ImageRow]) -> None:
    if len(np.unique(points.ids)) != len(points.ids):
        raise Broken("a point is there twice")
    if not (np.abs(points.xyz) <= FARTHEST).all():
        raise Broken(f"points3D holds points that are not finite, or beyond {FARTHEST:g}")
    if not len(points.track):
        return
    ids = np.array([row.id for row in images], np.int64)
    order = np.argsort(ids)
    place = np.searchsorted(ids[order], points.track[:, 0]).clip(max=max(len(ids) - 1, 0))
    if not len(ids) or (ids[order][place] != points.track[:, 0]).any():
        raise Broken("points3D names images that are not there")
    counts = np.array([len(row.keypoints) for row in images], np.int64)[order]
    if (points.track[:, 1] >= counts[place]).any():
        raise Broken("points3D names keypoints that their images do not have")


def _check_frames(
    rigs: Sequence[RigRow], frames: Sequence[FrameRow], cameras: dict[int, ColmapCamera], images: dict[int, ColmapImage]
) -> None:
    """Rigs and frames repeat the poses of the images; they must agree."""
    sensors = {rig.id: rig.sensors for rig in rigs}
    if len(sensors) != len(rigs) or len({frame.id for frame in frames}) != len(frames):
        raise Broken("a rig or a frame is there twice")
    for rig in rigs:
        for (kind, sensor), pose in rig.sensors.items():
            if kind == CAMERA_SENSOR and sensor not in cameras:
                raise Broken(f"the rig {rig.id} has the camera {sensor}, which is not there")
            if pose is not None:
                _pose(pose, f"the rig {rig.id}")
    seen: set[int] = set()
    for frame in frames:
        what = f"the frame {frame.id}"
        if frame.rig_id not in sensors:
            raise Broken(f"{what} is of the rig {frame.rig_id}, which is not there")
        rig_from_world = _pose(frame.pose, what)
        own = sensors[frame.rig_id]
        for sensor, data in frame.data:
            if sensor not in own:
                raise Broken(f"{what} is of the sensor {sensor[1]}, which its rig {frame.rig_id} does not have")
            if sensor[0] != CAMERA_SENSOR:
                continue
            if data not in images or images[data].camera.camera_id != sensor[1] or data in seen:
                raise Broken(f"{what} is of the image {data}, which is not there, of another camera, or in two frames")
            seen.add(data)
            relative = own[sensor]
            if relative is None and sensor != next(iter(own)):
                continue
            expected = rig_from_world if relative is None else _pose(relative, what) @ rig_from_world
            actual = images[data].cam_from_world
            tolerance = SAME_POSE * max(1.0, float(np.abs(expected[:3, 3]).max()))
            off = np.abs(expected - actual)
            if off[:3, :3].max() > SAME_POSE or off[:3, 3].max() > tolerance:
                raise Broken(
                    f"frames and rigs put the image {images[data].name[:100]!r} elsewhere than images does: if they "
                    "are of an older model, delete them"
                )
    if len(seen) != len(images):
        raise Broken(f"frames holds {len(seen)} of the {len(images)} images")
