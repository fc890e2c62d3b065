"""Videos read frame by frame by OpenCV's FFmpeg: upright 8-bit RGB with times; and the files of a video's results.

Of a video that is cut off or damaged, the frames before that place are read, and a note says when it ended.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dune_cli import console, optional
from dune_cli.errors import UserError
from dune_cli.io.image_file import LARGEST_PIXELS
from dune_cli.io.json_files import json_lines, write_json
from dune_cli.io.photos import SMALLEST_SIDE_PX, Photo, read_photo
from dune_cli.io.safe_read import open_regular
from dune_cli.provenance import sha256_of

SCHEMA = "dune.video/1"
LINES, SUMMARY = "frames.jsonl", "video.json"  # in the folder of results: a line a frame, and what is common to all
FALLBACK_HZ = 30.0  # where a file states no rate and no times
HIGHEST_HZ = 1000.0  # that a file may state
MAX_BOXES = 10_000  # of an MP4 file's top level
MISSING_S, MISSING_FRAMES = 0.2, 2  # a video may be this much shorter than announced: containers round
EPSILON_S = 1e-6


@dataclass(frozen=True)
class Frame:
    """`rgb` (H, W, 3) uint8, upright. `index` counts all frames of the video from 0. `time_s` is since the first."""

    index: int
    time_s: float
    rgb: np.ndarray


def frames(path: str | Path, fps: float | None = None) -> Iterator[Frame]:
    """The frames of a video in order, its orientation applied; one at a time is in memory.

    `fps`: only the frames nearest to the times 0, 1/fps, 2/fps, ... seconds, each once; None: all. UserError at once
    for a file that cannot be opened, has no frame that can be decoded, or has frames under 16 px a side.
    """
    return iter(Video(path, fps))


def first_frame(path: str | Path) -> Photo:
    """A video's first frame, with the hash of the whole file. UserError as for `frames`."""
    with Video(path) as video:
        return Photo(video.path, next(iter(video)).rgb, sha256_of(video.path))


class Video:
    """An open video, to be iterated once. `width`, `height` in pixels, upright; `rate_hz` is the file's frame rate,
    `announced_s` the length that it states, or None.

    Raises as `frames`. After the iteration `decoded` is the number of frames, `end_s` the time when they ended, and
    `complete` whether that is the announced length.
    """

    def __init__(self, path: str | Path, fps: float | None = None) -> None:
        if fps is not None and not (fps > 0 and math.isfinite(fps)):
            raise UserError(f"{fps:g} frames a second are impossible; give a positive number such as 5")
        self.path, self.fps = Path(path), fps
        self._cv2 = optional.require("cv2", f"the video {self.path}")
        self._capture = _open(self._cv2, self.path)
        self.rate_hz = _rate(self._capture.get(self._cv2.CAP_PROP_FPS))
        count = self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT)
        self.announced_s = count / self.rate_hz if math.isfinite(count) and count > 0 else None
        self.decoded, self.end_s, self.complete = 0, 0.0, True
        self._first = self._read()
        if self._first is None:
            self.close()
            raise UserError(f"{self.path} holds no frame that can be decoded; copy it again, or convert it")
        self.height, self.width = self._first[1].shape[:2]
        if min(self.height, self.width) < SMALLEST_SIDE_PX:
            self.close()
            raise UserError(
                f"{self.path} has {self.width} x {self.height} px; at least {SMALLEST_SIDE_PX} px a side are needed"
            )

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._capture.release()

    @property
    def expected(self) -> int | None:
        """The approximate number of frames of the iteration, from the announced length; None without one."""
        if self.announced_s is None:
            return None
        rate = self.rate_hz if self.fps is None else min(self.fps, self.rate_hz)
        return max(1, math.ceil(self.announced_s * rate - EPSILON_S))

    def __iter__(self) -> Iterator[Frame]:
        try:
            yield from self._all() if self.fps is None else _nearest(self._all(), self.fps)
        finally:
            self.close()

    def _all(self) -> Iterator[Frame]:
        """Every frame, then a note if the video ended early."""
        item, start_s, time_s = self._first, None, 0.0
        self._first = None
        while item is not None:
            stamp_s, rgb = item
            if start_s is None:
                start_s = stamp_s if math.isfinite(stamp_s) else 0.0
            elif stamp_s - start_s > time_s + EPSILON_S:
                time_s = stamp_s - start_s
            else:  # no time stamp, or one that goes backwards
                time_s += 1 / self.rate_hz
            if rgb.shape[:2] != (self.height, self.width):
                self.complete = False
                console.note(
                    f"{self.path.name} changes its size from {self.width} x {self.height} to {rgb.shape[1]} x "
                    f"{rgb.shape[0]} px at {time_s:.2f} s; the {self.decoded} frames before are used"
                )
                return
            frame = Frame(self.decoded, time_s, rgb)
            self.decoded, self.end_s = self.decoded + 1, time_s + 1 / self.rate_hz
            yield frame
            item = self._read()
        self._check_end()

    def _read(self) -> tuple[float, np.ndarray] | None:
        """(the file's time stamp in seconds, image); None at the end."""
        with _silent(self._cv2):
            try:
                good, bgr = self._capture.read()
            except self._cv2.error:
                return None
        if not good or bgr is None or bgr.ndim != 3:
            return None
        stamp_s = self._capture.get(self._cv2.CAP_PROP_POS_MSEC) / 1000
        return stamp_s, np.ascontiguousarray(bgr[..., ::-1])

    def _check_end(self) -> None:
        missing_s = 0.0 if self.announced_s is None else self.announced_s - self.end_s
        self.complete = missing_s <= max(MISSING_S, MISSING_FRAMES / self.rate_hz)
        if not self.complete:
            console.note(
                f"{self.path.name} is cut off or damaged: it ends at {self.end_s:.2f} s of {self.announced_s:.2f} s; "
                f"the {self.decoded} frames before are used"
            )


class PhotoSequence:
    """Photos in their order as the frames of a clip, `fps` a second, to be iterated once. The attributes are those of
    `Video`; `path` is the first photo's folder. `inputs`: each photo's path and hash, after the iteration.

    The iteration raises UserError for a photo of another size than the first one's.
    """

    def __init__(self, paths: Sequence[Path], fps: float) -> None:
        self.paths, self.path, self.fps, self.rate_hz = list(paths), paths[0].parent, fps, fps
        self.announced_s, self.complete = len(paths) / fps, True
        self.decoded, self.end_s = 0, 0.0
        self.width = self.height = 0
        self.inputs: list[tuple[Path, str]] = []

    def __enter__(self) -> PhotoSequence:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @property
    def expected(self) -> int:
        """The number of photos."""
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        for path in self.paths:
            photo = read_photo(path)
            self.inputs.append((path, photo.sha256))
            if not self.decoded:
                self.width, self.height = photo.width, photo.height
            elif (photo.width, photo.height) != (self.width, self.height):
                raise UserError(
                    f"{path} has {photo.width} x {photo.height} px, and the photos before it {self.width} x "
                    f"{self.height}; the frames of an animation need one size: resize or leave out those of another"
                )
            frame = Frame(self.decoded, self.decoded / self.fps, photo.rgb)
            self.decoded, self.end_s = self.decoded + 1, (self.decoded + 1) / self.fps
            yield frame


def _nearest(every: Iterator[Frame], fps: float) -> Iterator[Frame]:
    """The frames nearest to the times k / fps, up to the last frame's."""
    k, held = 0, None  # the next time is k / fps; `held` is the previous frame, unless it was yielded
    previous_s = -math.inf
    for frame in every:
        middle_s = (previous_s + frame.time_s) / 2
        if held is not None and k / fps <= middle_s + EPSILON_S:
            yield held
        if math.isfinite(middle_s):
            k = max(k, math.floor(middle_s * fps + EPSILON_S) + 1)
        held = frame
        if k / fps <= frame.time_s + EPSILON_S:
            yield frame
            held, k = None, math.floor(frame.time_s * fps + EPSILON_S) + 1
        previous_s = frame.time_s


def _open(cv2: ModuleType, path: Path) -> Any:
    """An open capture of upright frames."""
    with open_regular(path, "a video") as file:
        head = file.read(1)
    if not head:
        raise UserError(f"{path} is empty (0 bytes); copy or download it again")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read at FFmpeg's first use: no warnings on stderr
    with _silent(cv2):
        capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
        if capture.isOpened():
            capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
            _check_size(path, capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
            return capture
    capture.release()
    if _lacks_index(path):
        raise UserError(
            f"{path} has no whole index (moov), so no frame can be found: the recording or the copy of it was cut off; "
            "copy it again"
        )
    raise UserError(
        f"{path} cannot be read as a video: it is damaged, none, or of a codec that OpenCV's FFmpeg does not know; "
        "copy it again, or convert it, for example with ffmpeg -i VIDEO -c:v libx264 new.mp4"
    )


def _check_size(path: Path, width: float, height: float) -> None:
    """UserError for frames whose announced size is too large, before any is decoded."""
    if width * height > LARGEST_PIXELS:
        raise UserError(
            f"{path} announces frames of {width:.0f} x {height:.0f} px; at most {LARGEST_PIXELS // 10**6} megapixels "
            "are read: convert it to a smaller size first"
        )


def _lacks_index(path: Path) -> bool:
    """Whether an MP4 or MOV file ends before its `moov` box does (ISO/IEC 14496-12, 4.2)."""
    size = path.stat().st_size
    kinds, at = [], 0
    with path.open("rb") as file:
        while at + 8 <= size and len(kinds) < MAX_BOXES:
            file.seek(at)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1 and len(head) == 16:
                length = int.from_bytes(head[8:], "big")
            if length < 8:  # 0: up to the end
                length = size - at
            at += length
            if at <= size:
                kinds.append(head[4:8])
    return kinds[:1] == [b"ftyp"] and b"moov" not in kinds


def _rate(stated: float) -> float:
    return stated if math.isfinite(stated) and 0 < stated <= HIGHEST_HZ else FALLBACK_HZ


@contextmanager
def _silent(cv2: ModuleType) -> Iterator[None]:
    """Without OpenCV's own warnings on a damaged file."""
    logging = cv2.utils.logging
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)


def frame_file(folder: Path, index: int, ending: str) -> Path:
    """A frame's file, named by its index in the video: 000123.png."""
    return folder / f"{index:06d}.{ending}"


@dataclass(frozen=True)
class VideoFiles:
    """The JSON files of a video's results: `lines`, one a frame, and the `summary` of what is common to all."""

    lines: Path
    summary: Path

    @classmethod
    def in_folder(cls, folder: Path) -> VideoFiles:
        """frames.jsonl and video.json."""
        return cls(folder / LINES, folder / SUMMARY)

    @classmethod
    def beside(cls, file: Path) -> VideoFiles:
        """walk.jsonl and walk.json beside walk.glb."""
        return cls(file.with_suffix(".jsonl"), file.with_suffix(".json"))


class FrameLines:
    """Writes the lines of a video's results: the fields of a photo's JSON and `frame` (index, time_s). `summary`: the
    name of the file with the provenance."""

    def __init__(self, write: Any, summary: str) -> None:
        self._write, self._summary, self.count = write, summary, 0

    def add(self, frame: Frame, document: dict[str, Any]) -> None:
        """Writes one frame's line."""
        self.count += 1
        self._write(
            {
                "frame": {"index": frame.index, "time_s": round(frame.time_s, 6)},
                **document,
                "provenance": {"file": self._summary},
            }
        )


@contextmanager
def frame_lines(files: VideoFiles) -> Iterator[FrameLines]:
    """Writes `files.lines`, renamed when all lines are written."""
    with json_lines(files.lines) as write:
        yield FrameLines(write, files.summary.name)


def write_summary(
    files: VideoFiles,
    task: str,
    video: Video | PhotoSequence,
    count: int,
    fields: dict[str, Any],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Writes and returns the summary of a video that was iterated, with `count` results and the task's `fields`."""
    document = {
        "schema": SCHEMA,
        "task": task,
        "video": {
            "file": str(video.path),
            "width": video.width,
            "height": video.height,
            "rate_hz": video.rate_hz,
            "frames": video.decoded,
            "end_s": round(video.end_s, 6),
            "announced_s": video.announced_s,
            "complete": video.complete,
        },
        "fps": video.fps,
        "frames": {"file": files.lines.name, "count": count},
        **fields,
        "provenance": provenance,
    }
    write_json(files.summary, document)
    return document
