"""The tables that a COLMAP model's files hold, as rows.

The forms are those of COLMAP's documentation, "Output Format", with the rigs and frames of COLMAP 3.12.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

LONGEST_NAME_BYTES = 4096
MOST_RECORDS, MOST_POINTS = 1_000_000, 50_000_000  # of cameras, images, rigs, frames; of points
# COLMAP's number and name of each camera model, how many parameters it has, and how many of them, the first ones, are
# focal lengths (src/colmap/sensor/models.h, BSD)
MODELS = {
    0: ("SIMPLE_PINHOLE", 3, 1),
    1: ("PINHOLE", 4, 2),
    2: ("SIMPLE_RADIAL", 4, 1),
    3: ("RADIAL", 5, 1),
    4: ("OPENCV", 8, 2),
    5: ("OPENCV_FISHEYE", 8, 2),
    6: ("FULL_OPENCV", 12, 2),
    7: ("FOV", 5, 2),
    8: ("SIMPLE_RADIAL_FISHEYE", 4, 1),
    9: ("RADIAL_FISHEYE", 5, 1),
    10: ("THIN_PRISM_FISHEYE", 12, 2),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16, 2),
    12: ("SIMPLE_DIVISION", 4, 1),
    13: ("DIVISION", 5, 2),
    14: ("SIMPLE_FISHEYE", 3, 1),
    15: ("FISHEYE", 4, 2),
    16: ("EUCM", 6, 2),
    17: ("EQUIRECTANGULAR", 2, 0),
}
PARAMETERS = {name: count for name, count, _ in MODELS.values()}
FOCALS = {name: focals for name, _, focals in MODELS.values()}
CAMERA_SENSOR = 0
SENSORS = {"CAMERA": CAMERA_SENSOR, "IMU": 1}
Sensor = tuple[int, int]  # type, id


@dataclass
class CameraRow:
    id: int
    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass
class ImageRow:
    """`pose` qw qx qy qz tx ty tz of the camera from the world; `seen` (N, 2) px, the image's keypoints."""

    id: int
    pose: tuple[float, ...]
    camera_id: int
    name: str
    seen: np.ndarray


@dataclass
class PointTable:
    """`ids` (P,), `xyz` (P, 3); the track of point i is `track` (T, 2) from `starts[i]` to `starts[i + 1]`: an image's
    id and the keypoint's index in that image."""

    ids: np.ndarray
    xyz: np.ndarray
    starts: np.ndarray
    track: np.ndarray


@dataclass
class RigRow:
    """`sensors`: the pose of each sensor from the rig; None for the reference sensor and where it is unknown."""

    id: int
    sensors: dict[Sensor, tuple[float, ...] | None]


@dataclass
class FrameRow:
    """`pose` of the rig from the world; `data`: each sensor with the id of what it recorded, for a camera an image."""

    id: int
    rig_id: int
    pose: tuple[float, ...]
    data: list[tuple[Sensor, int]] = field(default_factory=list)


class Broken(Exception):
    """What does not fit in a file."""


def sensor_of(sensor: Sensor, taken: Any, owner: int) -> Sensor:
    """The sensor of a rig or frame `owner`. Raises Broken for an unknown type, and if it is in `taken`."""
    if sensor[0] not in SENSORS.values():
        raise Broken(f"{owner} has a sensor of the unknown type {sensor[0]}")
    if sensor in taken:
        raise Broken(f"the rig {owner} has the sensor {sensor[1]} twice")
    return sensor
