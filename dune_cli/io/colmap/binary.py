"""Reader of COLMAP's binary model files. Counts are checked against the bytes that follow."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from dune_cli.io.colmap.tables import (
    LONGEST_NAME_BYTES,
    MODELS,
    MOST_POINTS,
    MOST_RECORDS,
    Broken,
    CameraRow,
    FrameRow,
    ImageRow,
    PointTable,
    RigRow,
    Sensor,
    checked_sensor,
)

BLOCK = 1 << 20  # records


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
            sensor = checked_sensor(file.take(_SENSOR), sensors, id)
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
            row.data.append((checked_sensor((kind, sensor), (), id), data))
        rows.append(row)
    file.end()
    return rows


READERS: dict[str, Callable[[bytes], Any]] = {
    "cameras": lambda data: _cameras(_Bytes(data)),
    "images": lambda data: _images(_Bytes(data)),
    "points3D": lambda data: _points(_Bytes(data)),
    "rigs": lambda data: _rigs(_Bytes(data)),
    "frames": lambda data: _frames(_Bytes(data)),
}
