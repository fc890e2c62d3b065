"""Rigs of cameras read from COLMAP's rig_config.json: which photos cameras took at one moment, and where these cameras
are to one another.

Format: COLMAP, "Rig Support". A list of rigs with `cameras`, one of which is the reference (`ref_sensor`); of the
others `cam_from_rig_rotation` (qw qx qy qz) and `cam_from_rig_translation` are the pose of the camera from the rig,
which has the reference's axes; where no camera of a rig has them, they are estimated. Names of photos begin with a
camera's `image_prefix`; photos of one moment have one name after it. `camera_model_name` and `camera_params` are read
as well. Poses are those of the stored pixels, for COLMAP ignores EXIF.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.geometry.poses import from_rotation_translation, inverse, rotation_from_quaternion
from dune_cli.geometry.rigs import Mount, Rigs
from dune_cli.io.camera_files import CameraEntry, colmap_camera_entry
from dune_cli.io.json_files import Fields
from dune_cli.io.orientation import MIRRORED, UPRIGHT, stored_cam_from_cam
from dune_cli.io.photo_names import relative_names
from dune_cli.io.photos import read_header
from dune_cli.io.safe_read import forward_slashes, read_json, shown

FORM = (
    'COLMAP\'s rig_config.json, such as [{"cameras": [{"image_prefix": "left/", "ref_sensor": true}, {"image_prefix": '
    '"right/", "cam_from_rig_rotation": [1, 0, 0, 0], "cam_from_rig_translation": [-0.2, 0, 0]}]}]'
)
NAMED = 3


@dataclass(frozen=True)
class _Sensor:
    """A camera of a rig: its prefix, its pose (4, 4) from the rig (None: to be estimated), and its own camera where the
    file has it."""

    prefix: str
    cam_from_rig: np.ndarray | None
    entry: CameraEntry | None


@dataclass(frozen=True)
class GivenRigs:
    """The `rigs` of photos, by their index, and the `entries`: the cameras that the file has, by the photo's path."""

    rigs: Rigs
    entries: dict[Path, CameraEntry]


def read_rigs(path: str | Path, photos: Sequence[Path]) -> GivenRigs:
    """The rigs of a rig_config.json for these photos. Photos of no rig stand alone; a note counts them.

    UserError for a file of another form, for a rig of which some cameras have a pose and others none, and where no two
    photos are of one moment.
    """
    path = Path(path).expanduser()
    document = read_json(path, "a rig_config.json")
    if isinstance(document, dict) and isinstance(document.get("rigs"), list):
        document = document["rigs"]
    if not isinstance(document, list) or not document:
        raise UserError(f"{path} holds no rigs; allowed: {FORM}")
    rigs = [_sensors(Fields(rig, f"{path}: rig {number}"), path) for number, rig in enumerate(document)]
    names = relative_names(list(photos))
    places: dict[int, tuple[int, int]] = {}
    moments: dict[tuple[int, str, str], dict[int, int]] = {}
    prefixes: dict[tuple[int, int], str] = {}
    for index, photo in enumerate(photos):
        found = _place(photo, rigs)
        if found is None:
            continue
        rig, sensor, head, rest = found
        moment = moments.setdefault((rig, head, rest), {})
        if sensor in moment:
            raise UserError(
                f"{path}: {photos[moment[sensor]]} and {photo} are of one camera and one moment; leave one out"
            )
        moment[sensor], places[index] = index, (rig, sensor)
        length = len(PurePosixPath(rest).as_posix()) + len(photo.suffix)
        prefixes.setdefault((rig, sensor), names[index][: max(len(names[index]) - length, 0)])
    if not any(len(moment) > 1 for moment in moments.values()):
        known = ", ".join(shown(sensor.prefix) for sensors in rigs for sensor in sensors[:NAMED])
        raise UserError(
            f"no two of the {len(photos)} photos are of one moment of a rig in {path}: their names begin with a prefix "
            f"({known}), and are the same after it"
        )
    if len(places) < len(photos):
        alone = [photo.name for index, photo in enumerate(photos) if index not in places]
        console.note(
            f"{len(alone)} of {len(photos)} photos are of no rig in {path}: {', '.join(alone[:NAMED])}"
            f"{', ...' if len(alone) > NAMED else ''}"
        )
    poses = _poses_of_upright(path, photos, places, rigs)
    mounts = {}
    for frame, ((rig, _, _), moment) in enumerate(sorted(moments.items(), key=lambda one: min(one[1].values()))):
        order = sorted({sensor for other, sensor in places.values() if other == rig})
        reference = poses[rig, order[0]]
        for sensor, index in moment.items():
            pose = np.eye(4) if sensor == order[0] else poses[rig, sensor] @ inverse(reference)
            mounts[index] = Mount(rig, order.index(sensor), frame, pose)
    entries = {
        photos[index]: entry
        for index, (rig, sensor) in places.items()
        if (entry := rigs[rig][sensor].entry) is not None
    }
    renumbered = {}
    for (rig, sensor), prefix in prefixes.items():
        order = sorted({other for number, other in places.values() if number == rig})
        renumbered[rig, order.index(sensor)] = prefix
    unknown = {(mount.rig, mount.sensor) for mount in mounts.values() if np.isnan(mount.sensor_from_rig).any()}
    return GivenRigs(Rigs(mounts, renumbered, frozenset(unknown)), entries)


def _sensors(rig: Fields, path: Path) -> list[_Sensor]:
    """The cameras of a rig, the reference first."""
    listed = list(rig.objects("cameras"))
    references = [camera for camera in listed if camera.flag("ref_sensor", False)]
    if len(references) != 1:
        raise UserError(f"{rig.where} has {len(references)} cameras with ref_sensor; one of a rig's cameras has it")
    sensors = []
    for camera in [references[0], *(one for one in listed if one is not references[0])]:
        prefix = forward_slashes(camera.text("image_prefix"))
        if not prefix or prefix in [sensor.prefix for sensor in sensors]:
            raise UserError(f"{camera.where} has the image_prefix {shown(prefix)!r}; each camera needs one of its own")
        pose = np.eye(4) if camera is references[0] else _cam_from_rig(camera, prefix)
        entry = None
        if camera.get("camera_model_name") is not None and camera.get("camera_params"):
            model, params = camera.text("camera_model_name"), camera.items_of("camera_params")
            entry = colmap_camera_entry(model, params, camera.where)
        sensors.append(_Sensor(prefix, pose, entry))
    without = [sensor.prefix for sensor in sensors if sensor.cam_from_rig is None]
    if without and len(without) < len(sensors) - 1:
        raise UserError(
            f"{rig.where}: {', '.join(map(shown, without[:NAMED]))} has no cam_from_rig_rotation, and other cameras of "
            "the rig have one; give the poses of all cameras from the rig, or of none, to have them estimated"
        )
    return sensors


def _cam_from_rig(camera: Fields, prefix: str) -> np.ndarray | None:
    """The pose (4, 4) of a camera from its rig; None where the file has none."""
    names = ("cam_from_rig_rotation", "cam_from_rig_translation")
    missing = [name for name in names if camera.get(name) is None]
    if len(missing) == len(names):
        return None
    if missing:
        raise UserError(f"{camera.where} ({shown(prefix)}) has no {missing[0]}; give both, or neither to estimate them")
    quaternion = camera.array(names[0], (4,))
    if np.abs(quaternion).max() > 2 or abs(np.linalg.norm(quaternion) - 1) > 1e-3:
        raise UserError(f"{camera.where}: cam_from_rig_rotation is no unit quaternion (qw, qx, qy, qz)")
    rotation = rotation_from_quaternion(quaternion / np.linalg.norm(quaternion))
    return from_rotation_translation(rotation, camera.array(names[1], (3,)))


def _place(photo: Path, rigs: Sequence[Sequence[_Sensor]]) -> tuple[int, int, str, str] | None:
    """The rig and sensor of a photo: that of the longest prefix in its path; and its name before and after it, without
    the ending."""
    path, best = photo.absolute().as_posix(), None
    for rig, sensors in enumerate(rigs):
        for number, sensor in enumerate(sensors):
            at = path.rfind(f"/{sensor.prefix}")
            rest = path[at + 1 + len(sensor.prefix) :]
            if at >= 0 and rest and (best is None or len(sensor.prefix) > len(rigs[best[0]][best[1]].prefix)):
                best = (rig, number, path[:at], rest.removesuffix(photo.suffix))
    return best


def _poses_of_upright(
    path: Path, photos: Sequence[Path], places: dict[int, tuple[int, int]], rigs: Sequence[Sequence[_Sensor]]
) -> dict[tuple[int, int], np.ndarray]:
    """The pose of each (rig, sensor), of the upright photo's camera; NaN where it is not given. UserError where EXIF
    turns a sensor's photos in different ways."""
    turns: dict[tuple[int, int], int] = {}
    for index, place in places.items():
        header = read_header(photos[index])
        orientation = UPRIGHT if header is None else header.orientation
        if turns.setdefault(place, orientation) != orientation or orientation in MIRRORED:
            raise UserError(
                f"{path}: EXIF turns {photos[index].name} otherwise than photos of the same camera; save them upright"
            )
    poses = {}
    for place, orientation in turns.items():
        given = rigs[place[0]][place[1]].cam_from_rig
        poses[place] = inverse(stored_cam_from_cam(orientation)) @ (np.full((4, 4), np.nan) if given is None else given)
    return poses
