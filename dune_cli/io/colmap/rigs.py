"""Rigs and frames of a COLMAP model (rigs.bin and frames.bin, or .txt), which COLMAP 3.12 and later read, and the
rig_config.json of COLMAP's `rig_configurator`.

Formats: COLMAP, "Output Format" and "Rig Support". A sensor is a camera (type 0), by its camera's number; its pose is
that of the camera from the rig, which has the axes of its reference sensor.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.geometry.poses import inverse, quaternion_from_rotation
from dune_cli.geometry.rigs import Rigs
from dune_cli.io.json_files import write_json

CAMERA = 0  # COLMAP's type of a sensor
CONFIG = "rig_config.json"


@dataclass(frozen=True)
class _Rig:
    """A rig's number, the camera of its reference sensor, and camera -> (4, 4) camera from rig of the others."""

    id: int
    reference: int
    cam_from_rig: Mapping[int, np.ndarray]


@dataclass(frozen=True)
class _Frame:
    """A frame's number and rig, `rig_from_world` (4, 4), and (camera, image) of its images."""

    id: int
    rig: int
    rig_from_world: np.ndarray
    images: Sequence[tuple[int, int]]


def camera_ids(rigs: Rigs, count: int) -> list[int]:
    """The camera's number of each of `count` images, which are numbered from 1: that of the first image of its sensor,
    or its own where it is in no rig."""
    first: dict[tuple[int, int], int] = {}
    ids = []
    for index in range(count):
        mount = rigs.mounts.get(index)
        ids.append(index + 1 if mount is None else first.setdefault((mount.rig, mount.sensor), index + 1))
    return ids


def rig_files(rigs: Rigs, cam_from_world: Sequence[np.ndarray], binary: bool) -> dict[str, list[bytes]]:
    """The two files' names and pieces; `cam_from_world` (4, 4) of each image. Poses in a rig are those of the images of
    one frame to one another."""
    ids = camera_ids(rigs, len(cam_from_world))
    made, frames = _rigs_and_frames(rigs, cam_from_world, ids)
    return _binary(made, frames) if binary else _text(made, frames)


def _rigs_and_frames(
    rigs: Rigs, cam_from_world: Sequence[np.ndarray], ids: Sequence[int]
) -> tuple[list[_Rig], list[_Frame]]:
    moments = rigs.moments(len(ids))
    made: dict[object, _Rig] = {}
    for photos in moments:
        mount = rigs.mounts.get(photos[0])
        key: object = ("alone", ids[photos[0]]) if mount is None else mount.rig
        rig = made.setdefault(key, _Rig(ids[photos[0]], ids[photos[0]], {}))
        first = cam_from_world[photos[0]]
        if ids[photos[0]] != rig.reference:  # a frame without the reference sensor
            if ids[photos[0]] not in rig.cam_from_rig:
                continue
            first = inverse(rig.cam_from_rig[ids[photos[0]]]) @ first
        seen = {ids[index]: cam_from_world[index] @ inverse(first) for index in photos}
        new = {camera: pose for camera, pose in seen.items() if camera not in (rig.reference, *rig.cam_from_rig)}
        made[key] = _Rig(rig.id, rig.reference, {**rig.cam_from_rig, **new})
    frames = []
    for photos in moments:
        mount = rigs.mounts.get(photos[0])
        rig = made[("alone", ids[photos[0]]) if mount is None else mount.rig]
        own, from_rig = cam_from_world[photos[0]], rig.cam_from_rig.get(ids[photos[0]])
        rig_from_world = own if from_rig is None else inverse(from_rig) @ own
        frames.append(_Frame(photos[0] + 1, rig.id, rig_from_world, [(ids[index], index + 1) for index in photos]))
    return list(made.values()), frames


def _pose(matrix: np.ndarray) -> list[float]:
    """qw qx qy qz tx ty tz."""
    return [*map(float, quaternion_from_rotation(matrix[:3, :3])), *map(float, matrix[:3, 3])]


def _binary(rigs: Sequence[_Rig], frames: Sequence[_Frame]) -> dict[str, list[bytes]]:
    rows, moments = [struct.pack("<Q", len(rigs))], [struct.pack("<Q", len(frames))]
    for rig in rigs:
        rows.append(struct.pack("<IIiI", rig.id, 1 + len(rig.cam_from_rig), CAMERA, rig.reference))
        rows += [struct.pack("<iIB7d", CAMERA, id, 1, *_pose(pose)) for id, pose in sorted(rig.cam_from_rig.items())]
    for frame in frames:
        moments.append(
            struct.pack("<II7dI", frame.id, frame.rig, *_pose(frame.rig_from_world), len(frame.images))
            + b"".join(struct.pack("<iIQ", CAMERA, *image) for image in frame.images)
        )
    return {"rigs.bin": rows, "frames.bin": moments}


def _text(rigs: Sequence[_Rig], frames: Sequence[_Frame]) -> dict[str, list[bytes]]:
    rows: list[list[Any]] = [
        ["# RIG_ID NUM_SENSORS REF_SENSOR_TYPE REF_SENSOR_ID, then SENSOR_TYPE SENSOR_ID HAS_POSE and the pose of each"]
    ]
    moments: list[list[Any]] = [["# FRAME_ID RIG_ID QW QX QY QZ TX TY TZ NUM_DATA_IDS, then SENSOR_TYPE SENSOR_ID ID"]]
    for rig in rigs:
        others = [["CAMERA", id, 1, *_pose(pose)] for id, pose in sorted(rig.cam_from_rig.items())]
        rows.append([rig.id, 1 + len(others), "CAMERA", rig.reference, *(word for other in others for word in other)])
    for frame in frames:
        images = [word for image in frame.images for word in ("CAMERA", *image)]
        moments.append([frame.id, frame.rig, *_pose(frame.rig_from_world), len(frame.images), *images])
    return {
        name: [(" ".join(map(str, row)) + "\n").encode() for row in table]
        for name, table in (("rigs.txt", rows), ("frames.txt", moments))
    }


def write_rig_config(folder: Path, rigs: Rigs) -> None:
    """Writes rig_config.json, where all sensors have prefixes of their own. The images of a frame have one name after
    the prefix."""
    if not rigs.prefixes or len(set(rigs.prefixes.values())) < len(rigs.prefixes):
        return
    document = []
    for rig in rigs.numbers:
        cameras: list[dict[str, Any]] = []
        for sensor, sensor_from_rig in rigs.sensors(rig).items():
            camera: dict[str, Any] = {"image_prefix": rigs.prefixes[rig, sensor]}
            if sensor == 0:
                camera["ref_sensor"] = True
            else:
                pose = _pose(sensor_from_rig)
                camera |= {"cam_from_rig_rotation": pose[:4], "cam_from_rig_translation": pose[4:]}
            cameras.append(camera)
        document.append({"cameras": cameras})
    write_json(folder / CONFIG, document)
