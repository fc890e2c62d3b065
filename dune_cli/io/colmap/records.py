"""The records of a COLMAP model's files, read from the binary and the text form.

They are those of COLMAP's documentation, "Output Format", with the rigs and frames of COLMAP 3.12. Counts are checked
against the bytes that follow, and every word of a text file is checked.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dune_cli.geometry import camera_models

LONGEST_NAME_BYTES = 4096
LONGEST_LINE = 8 << 20  # characters of a text file: 200,000 keypoints
BLOCK = 1 << 20  # binary records gathered at a time
MOST_RECORDS, MOST_POINTS = 1_000_000, 50_000_000  # of cameras, images, rigs, frames; of points
# COLMAP's number of each camera model -> its name, number of parameters, and how many of these, the first, are focal
# lengths
MODELS = {model.number: (name, len(model.parameters), model.focals) for name, model in camera_models.MODELS.items()}
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


def _checked_sensor(sensor: Sensor, taken: Any, owner: int) -> Sensor:
    """`sensor` of the rig or frame `owner`. Raises Broken for an unknown type, and if it is in `taken`."""
    if sensor[0] not in SENSORS.values():
        raise Broken(f"{owner} has a sensor of the unknown type {sensor[0]}")
    if sensor in taken:
        raise Broken(f"the rig {owner} has the sensor {sensor[1]} twice")
    return sensor


class _Bytes:
    """A binary file, read from its beginning to its end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: struct.Struct) -> tuple[Any, ...]:
        if self.at + form.size > len(self.data):
            raise Broken("it is cut off")
        values = form.unpack_from(self.data, self.at)
        self.at += form.size
        return values

    def count(self, at_least_bytes: int, most: int = MOST_RECORDS) -> int:
        """Reads the number of the records that follow, none of them shorter than `at_least_bytes`."""
        (count,) = self.take(_COUNT)
        return self.check_count(count, at_least_bytes, most)

    def check_count(self, count: int, at_least_bytes: int, most: int = MOST_RECORDS) -> int:
        if count * at_least_bytes > len(self.data) - self.at:
            raise Broken(f"it counts {count} records, which is more than its bytes hold")
        if count > most:
            raise Broken(f"it counts {count} records; at most {most} are read")
        return count

    def text(self) -> str:
        end = self.data.find(b"\0", self.at, self.at + LONGEST_NAME_BYTES + 1)
        if end < 0:
            raise Broken("an image's name does not end")
        name = os.fsdecode(self.data[self.at : end])
        self.at = end + 1
        return name

    def end(self) -> None:
        if self.at != len(self.data):
            raise Broken(f"{len(self.data) - self.at} bytes follow its last record")


_COUNT, _COUNT32 = struct.Struct("<Q"), struct.Struct("<I")
_CAMERA, _IMAGE = struct.Struct("<IiQQ"), struct.Struct("<I7dI")
_POINT_BYTES, _TRACK_BYTES, _LENGTH_AT = 51, 8, 43
_KEYPOINT = np.dtype([("x", "<f8"), ("y", "<f8"), ("point", "<u8")])
_POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("length", "<u8")])
_SENSOR, _POSE, _FLAG = struct.Struct("<iI"), struct.Struct("<7d"), struct.Struct("<B")
_FRAME, _DATUM = struct.Struct("<II7d"), struct.Struct("<iIQ")


def _cameras(file: _Bytes) -> list[CameraRow]:
    rows = []
    for _ in range(file.count(_CAMERA.size)):
        id, model, width, height = file.take(_CAMERA)
        if model not in MODELS:
            raise Broken(f"the camera {id} has the unknown model number {model}")
        name, count, _ = MODELS[model]
        rows.append(CameraRow(id, name, width, height, file.take(struct.Struct(f"<{count}d"))))
    file.end()
    return rows


def _images(file: _Bytes) -> list[ImageRow]:
    rows = []
    for _ in range(file.count(_IMAGE.size + 1 + _COUNT.size)):
        id, *pose, camera_id = file.take(_IMAGE)
        name = file.text()
        count = file.count(_KEYPOINT.itemsize)
        table = np.frombuffer(file.data, _KEYPOINT, count, file.at)
        file.at += count * _KEYPOINT.itemsize
        rows.append(ImageRow(id, tuple(pose), camera_id, name, np.stack([table["x"], table["y"]], axis=1)))
    file.end()
    return rows


def _points(file: _Bytes) -> PointTable:
    count = file.count(_POINT_BYTES, MOST_POINTS)
    at = np.empty(count, np.int64)
    lengths = np.empty(count, np.int64)
    place, data, size = file.at, file.data, len(file.data)
    for i in range(count):
        if place + _POINT_BYTES > size:
            raise Broken("it is cut off")
        (length,) = _COUNT.unpack_from(data, place + _LENGTH_AT)
        at[i] = place
        if length * _TRACK_BYTES > size - place - _POINT_BYTES:
            raise Broken(f"the track of a point has {length} elements, which is more than its bytes hold")
        lengths[i] = length
        place += _POINT_BYTES + _TRACK_BYTES * length
    file.at = place
    file.end()
    flat = np.frombuffer(data, np.uint8)
    heads = _gathered(flat, at, _POINT_BYTES).reshape(-1).view(_POINT)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    places = np.repeat(at + _POINT_BYTES, lengths) + _TRACK_BYTES * within
    track = _gathered(flat, places, _TRACK_BYTES).reshape(-1).view("<u4").reshape(-1, 2)
    return PointTable(heads["id"].copy(), heads["xyz"].copy(), starts, track.astype(np.int64))


def _gathered(flat: np.ndarray, places: np.ndarray, length: int) -> np.ndarray:
    """(N, length) bytes from each of `places` on; in blocks, because the indices take eight times as much memory."""
    records = np.empty((len(places), length), np.uint8)
    for start in range(0, len(places), BLOCK):
        block = slice(start, start + BLOCK)
        records[block] = flat[places[block, None] + np.arange(length)]
    return records


def _rigs(file: _Bytes) -> list[RigRow]:
    rows = []
    for _ in range(file.count(2 * _COUNT32.size)):
        (id,), (count,) = file.take(_COUNT32), file.take(_COUNT32)
        sensors: dict[Sensor, tuple[float, ...] | None] = {}
        for place in range(file.check_count(count, _SENSOR.size)):
            sensor = _checked_sensor(file.take(_SENSOR), sensors, id)
            has_pose = place > 0 and file.take(_FLAG)[0]
            sensors[sensor] = file.take(_POSE) if has_pose else None
        rows.append(RigRow(id, sensors))
    file.end()
    return rows


def _frames(file: _Bytes) -> list[FrameRow]:
    rows = []
    for _ in range(file.count(_FRAME.size + _COUNT32.size)):
        id, rig_id, *pose = file.take(_FRAME)
        (count,) = file.take(_COUNT32)
        row = FrameRow(id, rig_id, tuple(pose))
        for _ in range(file.check_count(count, _DATUM.size)):
            kind, sensor, data = file.take(_DATUM)
            row.data.append((_checked_sensor((kind, sensor), (), id), data))
        rows.append(row)
    file.end()
    return rows


class _Lines:
    """A text file's lines. Iteration skips comments and blank lines; only images.txt gives blank lines a meaning."""

    def __init__(self, text: str) -> None:
        self._text = text

    def all(self) -> Iterator[str]:
        """All lines, one at a time: a list of them may take many times the memory of the text."""
        start = 0
        while start < len(self._text):
            end = self._text.find("\n", start)
            end = len(self._text) if end < 0 else end
            if end - start > LONGEST_LINE:
                raise Broken(f"it has a line of {end - start} characters; at most {LONGEST_LINE} are read")
            yield self._text[start:end]
            start = end + 1

    def __iter__(self) -> Iterator[list[str]]:
        for number, line in enumerate(line for line in self.all() if _has_content(line)):
            if number >= MOST_POINTS:
                raise Broken(f"it has more than {MOST_POINTS} records")
            yield line.split()


def _has_content(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _integer(word: str) -> int:
    if not (word.isascii() and word.isdigit()) or len(word) > 20:
        raise Broken(f"{word[:40]!r} stands where a whole number is needed")
    return int(word)


def _real(word: str) -> float:
    try:
        if not word.isascii() or "_" in word:
            raise ValueError
        return float(word)
    except ValueError as error:
        raise Broken(f"{word[:40]!r} stands where a number is needed") from error


def _reals(words: list[str]) -> tuple[float, ...]:
    return tuple(map(_real, words))


def _check_length(words: list[str], count: int, what: str) -> None:
    if len(words) < count:
        raise Broken(f"a line of {what} has {len(words)} words, not the {count} or more that it needs")


def _cameras_text(file: _Lines) -> list[CameraRow]:
    rows = []
    for words in file:
        _check_length(words, 5, "a camera")
        if words[1] not in PARAMETERS:
            raise Broken(f"the camera {words[0][:20]} has the unknown model {words[1][:40]!r}")
        if len(words) - 4 != PARAMETERS[words[1]]:
            raise Broken(f"a {words[1]} camera has {PARAMETERS[words[1]]} parameters, not {len(words) - 4}")
        rows.append(CameraRow(_integer(words[0]), words[1], _integer(words[2]), _integer(words[3]), _reals(words[4:])))
    return rows


def _images_text(file: _Lines) -> list[ImageRow]:
    """Two lines an image; the second, of its keypoints, may be empty."""
    rows = []
    lines = file.all()
    for line in lines:
        if not _has_content(line):
            continue
        if len(rows) >= MOST_RECORDS:
            raise Broken(f"it has more than {MOST_RECORDS} images")
        words = line.split(maxsplit=9)
        _check_length(words, 10, "an image")
        keypoints = next(lines, "").split()
        if len(keypoints) % 3:
            raise Broken(f"the line after the image {words[0][:20]} has {len(keypoints)} words, not three a keypoint")
        for word in keypoints[2::3]:
            if word != "-1":
                _integer(word)
        pixels = np.array([_reals(keypoints[0::3]), _reals(keypoints[1::3])], np.float64).T.reshape(-1, 2)
        name = words[9].rstrip()
        if len(os.fsencode(name)) > LONGEST_NAME_BYTES:
            raise Broken("an image's name does not end")
        rows.append(ImageRow(_integer(words[0]), _reals(words[1:8]), _integer(words[8]), name, pixels))
    return rows


def _points_text(file: _Lines) -> PointTable:
    ids, xyz, lengths, track = array("Q"), array("d"), array("q"), array("q")
    for words in file:
        _check_length(words, 8, "a point")
        if len(words) % 2:
            raise Broken(f"the track of the point {words[0][:20]} is not in pairs")
        ids.append(_integer(words[0]))
        xyz.extend(_reals(words[1:4]))
        for word in words[4:7]:
            _integer(word)
        _real(words[7])
        track.extend(map(_integer, words[8:]))
        lengths.append((len(words) - 8) // 2)
    return PointTable(
        np.array(ids),
        np.array(xyz).reshape(-1, 3),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array(track).reshape(-1, 2),
    )


def _rigs_text(file: _Lines) -> list[RigRow]:
    rows = []
    for words in file:
        _check_length(words, 2, "a rig")
        id, count = _integer(words[0]), _integer(words[1])
        sensors: dict[Sensor, tuple[float, ...] | None] = {}
        at = 2
        while at < len(words):
            sensor = _checked_sensor(_sensor(words[at : at + 2]), sensors, id)
            at += 2
            pose = None
            if len(sensors) > 0:
                flag = words[at]
                if flag not in ("0", "1"):
                    raise Broken(f"{flag[:20]!r} stands where 0 or 1 is needed")
                at += 1
                if flag == "1":
                    pose = _pose(words[at : at + 7])
                    at += 7
            sensors[sensor] = pose
        if len(sensors) != count:
            raise Broken(f"the rig {id} counts {count} sensors and names {len(sensors)}")
        rows.append(RigRow(id, sensors))
    return rows


def _frames_text(file: _Lines) -> list[FrameRow]:
    rows = []
    for words in file:
        _check_length(words, 10, "a frame")
        row = FrameRow(_integer(words[0]), _integer(words[1]), _pose(words[2:9]))
        count, data = _integer(words[9]), words[10:]
        if len(data) != 3 * count:
            raise Broken(f"the frame {row.id} counts {count} data and has {len(data)} words of them")
        for at in range(0, len(data), 3):
            row.data.append((_checked_sensor(_sensor(data[at : at + 2]), (), row.id), _integer(data[at + 2])))
        rows.append(row)
    return rows


def _sensor(words: list[str]) -> Sensor:
    _check_length(words, 2, "sensors")
    return SENSORS.get(words[0], -1), _integer(words[1])


def _pose(words: list[str]) -> tuple[float, ...]:
    _check_length(words, 7, "a pose")
    return _reals(words)


_BINARY = {"cameras": _cameras, "images": _images, "points3D": _points, "rigs": _rigs, "frames": _frames}
_TEXT = {
    "cameras": _cameras_text,
    "images": _images_text,
    "points3D": _points_text,
    "rigs": _rigs_text,
    "frames": _frames_text,
}


def read_binary(name: str, data: bytes) -> Any:
    """The rows of the binary file `name` ("cameras", "images", "points3D", "rigs", "frames"). Raises Broken, or
    struct.error, OverflowError or IndexError."""
    return _BINARY[name](_Bytes(data))


def read_text(name: str, text: str) -> Any:
    """The rows of the text file `name`. Raises as `read_binary`."""
    return _TEXT[name](_Lines(text))
