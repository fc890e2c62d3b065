"""Cameras, poses and points as a COLMAP model (text or binary), the input of most splatting and MVS tools.

The three files of COLMAP's documentation, "Output Format" (cameras, images, points3D), which every version reads. Not
written by pycolmap: on a full disk its writer leaves empty files without an error, and it adds rigs and frames.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import HALF_PIXEL
from dune_cli.geometry.poses import quaternion_from_rotation
from dune_cli.geometry.rigs import NO_RIGS, Rigs
from dune_cli.io.colmap.rigs import camera_ids, rig_files
from dune_cli.io.meshes import Frustum, check_colors, check_points
from dune_cli.io.outputs import atomic_directory
from dune_cli.io.photo_names import check_names_for_colmap

UNKNOWN_ERROR = -1.0
# newer versions add rigs and frames; stale ones beside our files would be read with them
MODEL_FILES = [
    f"{name}.{end}" for name in ("cameras", "images", "points3D", "rigs", "frames") for end in ("bin", "txt")
]

Observation = tuple[int, float, float]


def write_colmap(
    folder: str | Path,
    cameras: Sequence[Frustum],
    points: np.ndarray | None = None,
    colors: np.ndarray | None = None,
    tracks: Sequence[Sequence[Observation]] | None = None,
    binary: bool = True,
    lenses: Sequence[Camera] | None = None,
    rigs: Rigs = NO_RIGS,
) -> None:
    """Writes a model with one camera for all images that have equal ones: PINHOLE, or that in `lenses`, whose pinhole
    part is its K.

    A camera's `name` is its image's file name; its K is in pixels with centres at integers. `points` (M, 3) in the
    world with `colors` (M, 3) uint8 (grey without). `tracks`: for each point its observations (camera index, x_px,
    y_px). `rigs` of the images, by their place: the images of a sensor then share its camera, and rigs and frames are
    written as well. A model in `folder` is replaced, other files there stay. UserError for names that a model cannot
    hold, as `check_names_for_colmap`.
    """
    check_names_for_colmap([camera.name for camera in cameras], binary)
    points = np.empty((0, 3)) if points is None else points
    colors = np.full((len(points), 3), 128, np.uint8) if colors is None else colors
    tracks = [()] * len(points) if tracks is None else tracks
    check_points(points, "points")
    check_colors(colors, len(points), "points")
    if len(tracks) != len(points):
        raise ValueError(f"{len(tracks)} tracks for {len(points)} points")
    if lenses is None:
        lenses = [Camera.pinhole(np.asarray(one.K, np.float64), one.width, one.height) for one in cameras]
    cameras_of = camera_ids(rigs, len(cameras)) if rigs.mounts else _shared_ids(lenses)
    images = [
        replace(_Image.of(camera, i, lens), camera=number)
        for i, (camera, lens, number) in enumerate(zip(cameras, lenses, cameras_of), 1)
    ]
    elements = [[images[index].observe(point, x, y) for index, x, y in track] for point, track in enumerate(tracks, 1)]
    files = (_binary_files if binary else _text_files)(images, points.astype(np.float64), colors, elements)
    if rigs.mounts:
        poses = [np.linalg.inv(np.asarray(camera.world_from_cam, np.float64)) for camera in cameras]
        files |= rig_files(rigs, poses, binary)
    with atomic_directory(folder, replaces=MODEL_FILES) as temporary:
        for name, pieces in files.items():
            with (temporary / name).open("wb") as file:
                file.writelines(pieces)


def _shared_ids(lenses: Sequence[Camera]) -> list[int]:
    """The camera's number of each image, which are numbered from 1: that of the first image with an equal camera."""
    first: dict[Camera, int] = {}
    return [first.setdefault(lens, number) for number, lens in enumerate(lenses, 1)]


@dataclass(frozen=True)
class _Image:
    """An image and its camera: `model` (COLMAP's number and name), `params` as COLMAP has them, `pose` (qw qx qy qz tx
    ty tz of the camera from the world), `keypoints` (x, y, point), and its camera's number."""

    id: int
    name: str
    size: tuple[int, int]
    model: tuple[int, str]
    params: list[float]
    pose: list[float]
    keypoints: list[tuple[float, float, int]] = field(default_factory=list)
    camera: int = 0

    @classmethod
    def of(cls, camera: Frustum, id: int, lens: Camera) -> _Image:
        model, params = (lens.kind.number, lens.model), lens.colmap_params
        cam_from_world = np.linalg.inv(np.asarray(camera.world_from_cam, np.float64))
        pose = [*quaternion_from_rotation(cam_from_world[:3, :3]), *cam_from_world[:3, 3]]
        return cls(id, camera.name, (camera.width, camera.height), model, [*map(float, params)], [*map(float, pose)])

    def observe(self, point: int, x_px: float, y_px: float) -> tuple[int, int]:
        """Adds an observation of `point`; returns its track element: the image's id and the keypoint's index."""
        self.keypoints.append((float(x_px) + HALF_PIXEL, float(y_px) + HALF_PIXEL, point))
        return self.id, len(self.keypoints) - 1


def _with_own_camera(images: Sequence[_Image]) -> list[_Image]:
    """The first image of each camera."""
    return [image for image in images if image.camera == image.id]


Elements = Sequence[Sequence[tuple[int, int]]]


def _binary_files(
    images: Sequence[_Image], points: np.ndarray, colors: np.ndarray, elements: Elements
) -> dict[str, Iterable[bytes]]:
    count = [struct.pack("<Q", len(images))]
    camera_count = [struct.pack("<Q", len(_with_own_camera(images)))]
    cameras = [
        struct.pack(f"<IiQQ{len(image.params)}d", image.camera, image.model[0], *image.size, *image.params)
        for image in _with_own_camera(images)
    ]
    views = []
    for image in images:
        views += [struct.pack("<I7dI", image.id, *image.pose, image.camera), os.fsencode(image.name), b"\0"]
        views += [struct.pack("<Q", len(image.keypoints)), *(struct.pack("<2dQ", *point) for point in image.keypoints)]
    cloud = [struct.pack("<Q", len(points))]
    for i, (point, color, track) in enumerate(zip(points.tolist(), colors.tolist(), elements), 1):
        cloud += [struct.pack("<Q3d3BdQ", i, *point, *color, UNKNOWN_ERROR, len(track))]
        cloud += [struct.pack("<II", *element) for element in track]
    return {"cameras.bin": camera_count + cameras, "images.bin": count + views, "points3D.bin": cloud}


def _text_files(
    images: Sequence[_Image], points: np.ndarray, colors: np.ndarray, elements: Elements
) -> dict[str, Iterable[bytes]]:
    cameras = [("# CAMERA_ID MODEL WIDTH HEIGHT, then the parameters of the model",)]
    views = [("# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then a line of X Y POINT3D_ID",)]
    cameras += [(one.camera, one.model[1], *one.size, *one.params) for one in _with_own_camera(images)]
    for image in images:
        views.append((image.id, *image.pose, image.camera, image.name))
        views.append(tuple(value for keypoint in image.keypoints for value in keypoint))
    cloud = [("# POINT3D_ID X Y Z R G B ERROR, then IMAGE_ID POINT2D_IDX of each image that sees it",)]
    for i, (point, color, track) in enumerate(zip(points.tolist(), colors.tolist(), elements), 1):
        cloud.append((i, *point, *color, UNKNOWN_ERROR, *(value for element in track for value in element)))
    return {"cameras.txt": _lines(cameras), "images.txt": _lines(views), "points3D.txt": _lines(cloud)}


def _lines(rows: Iterable[Sequence[object]]) -> Iterable[bytes]:
    return (os.fsencode(" ".join(map(str, row)) + "\n") for row in rows)
