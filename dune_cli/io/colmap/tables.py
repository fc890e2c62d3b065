"""The records of a COLMAP model's files, as the binary and the text reader return them.

They are those of COLMAP's documentation, "Output Format", with the rigs and frames of COLMAP 3.12.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

LONGEST_NAME_BYTES = 4096
MOST_RECORDS, MOST_POINTS = 1_000_000, 50_000_000  # of cameras, images, rigs, frames; of points
# COLMAP's number of each camera model -> its name, number of parameters, and how many of these, the first, are focal
# lengths (src/colmap/sensor/models.h, BSD)
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
    """`pose` is qw qx qy qz tx ty tz of the camera from the world; `keypoints` (N, 2) in pixels."""

    id: int
    pose: tuple[float, ...]
    camera_id: int
    name: str
    keypoints: np.ndarray


@dataclass
class PointTable:
    """`ids` (P,), `xyz` (P, 3). The track of point i is rows `starts[i]` to `starts[i + 1]` of `track` (T, 2): the id
    of an image and the index of its keypoint."""

    ids: np.ndarray
    xyz: np.ndarray
    starts: np.ndarray
    track: np.ndarray


@dataclass
class RigRow:
    """`sensors`: sensor -> its pose from the rig; None for the reference sensor and for unknown poses."""

    id: int
    sensors: dict[Sensor, tuple[float, ...] | None]


@dataclass
class FrameRow:
    """`pose` of the rig from the world; `data`: sensors with the id of their datum, which is an image of a camera."""

    id: int
    rig_id: int
    pose: tuple[float, ...]
    data: list[tuple[Sensor, int]] = field(default_factory=list)


class Broken(Exception):
    """A file that is not in COLMAP's format; the message says why."""


def checked_sensor(sensor: Sensor, taken: Any, owner: int) -> Sensor:
    """`sensor` of the rig or frame `owner`. Raises Broken for an unknown type, and if it is in `taken`."""
    if sensor[0] not in SENSORS.values():
        raise Broken(f"{owner} has a sensor of the unknown type {sensor[0]}")
    if sensor in taken:
        raise Broken(f"the rig {owner} has the sensor {sensor[1]} twice")
    return sensor
