"""Reader of COLMAP's text model files. Every word is checked."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dune_cli.io.colmap.tables import (
    LONGEST_NAME_BYTES,
    MOST_POINTS,
    MOST_RECORDS,
    PARAMETERS,
    SENSORS,
    Broken,
    CameraRow,
    FrameRow,
    ImageRow,
    PointTable,
    RigRow,
    Sensor,
    checked_sensor,
)

LONGEST_LINE = 8 << 20  # characters: 200,000 keypoints


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


def _cameras(file: _Lines) -> list[CameraRow]:
    rows = []
    for words in file:
        _check_length(words, 5, "a camera")
        if words[1] not in PARAMETERS:
            raise Broken(f"the camera {words[0][:20]} has the unknown model {words[1][:40]!r}")
        if len(words) - 4 != PARAMETERS[words[1]]:
            raise Broken(f"a {words[1]} camera has {PARAMETERS[words[1]]} parameters, not {len(words) - 4}")
        rows.append(CameraRow(_integer(words[0]), words[1], _integer(words[2]), _integer(words[3]), _reals(words[4:])))
    return rows


def _images(file: _Lines) -> list[ImageRow]:
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


def _points(file: _Lines) -> PointTable:
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


def _rigs(file: _Lines) -> list[RigRow]:
    rows = []
    for words in file:
        _check_length(words, 2, "a rig")
        id, count = _integer(words[0]), _integer(words[1])
        sensors: dict[Sensor, tuple[float, ...] | None] = {}
        at = 2
        while at < len(words):
            sensor = checked_sensor(_sensor(words[at : at + 2]), sensors, id)
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


def _frames(file: _Lines) -> list[FrameRow]:
    rows = []
    for words in file:
        _check_length(words, 10, "a frame")
        row = FrameRow(_integer(words[0]), _integer(words[1]), _pose(words[2:9]))
        count, data = _integer(words[9]), words[10:]
        if len(data) != 3 * count:
            raise Broken(f"the frame {row.id} counts {count} data and has {len(data)} words of them")
        for at in range(0, len(data), 3):
            row.data.append((checked_sensor(_sensor(data[at : at + 2]), (), row.id), _integer(data[at + 2])))
        rows.append(row)
    return rows


def _sensor(words: list[str]) -> Sensor:
    _check_length(words, 2, "sensors")
    return SENSORS.get(words[0], -1), _integer(words[1])


def _pose(words: list[str]) -> tuple[float, ...]:
    _check_length(words, 7, "a pose")
    return _reals(words)


READERS: dict[str, Callable[[str], Any]] = {
    "cameras": lambda text: _cameras(_Lines(text)),
    "images": lambda text: _images(_Lines(text)),
    "points3D": lambda text: _points(_Lines(text)),
    "rigs": lambda text: _rigs(_Lines(text)),
    "frames": lambda text: _frames(_Lines(text)),
}
