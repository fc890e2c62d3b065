"""Small videos, written by OpenCV, and what can be wrong with them."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from support import EXAMPLE_PHOTOS as PHOTOS

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


def write_video(path: Path, frames: Sequence[np.ndarray], fps: float = 10.0, codec: str | None = None) -> Path:
    """RGB frames (H, W, 3) uint8 as MPEG-4 or, in .avi, Motion JPEG."""
    codec = codec or ("MJPG" if path.suffix == ".avi" else "mp4v")
    height, width = frames[0].shape[:2] if len(frames) else (64, 96)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), fps, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


def grey_frames(count: int, width: int = 96, height: int = 64) -> list[np.ndarray]:
    """Frame k has the grey level 8 k, and a red strip at its left."""
    frames = [np.full((height, width, 3), 8 * k, np.uint8) for k in range(count)]
    for frame in frames:
        frame[:, : width // 4] = (255, 0, 0)
    return frames


def panned(name: str, count: int, width: int = 112, height: int = 84, step: int = 2) -> list[np.ndarray]:
    """An example photo, reduced, under a window that moves to the right."""
    with Image.open(PHOTOS / name) as image:
        wide = np.asarray(image.convert("RGB").resize((width + step * count, height)))
    return [wide[:, step * k : step * k + width] for k in range(count)]


def boxes(data: bytes) -> dict[bytes, tuple[int, int]]:
    """Kind -> (start, end) of an MP4's boxes at the top."""
    found, at = {}, 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found[data[at + 4 : at + 8]] = (at, at + length)
        at += length
    return found


def index_first(path: Path) -> Path:
    """Moves the MP4's index before its frames, as files for the web have it: such a file can be cut and still read."""
    data = path.read_bytes()
    (frames_at, _), (index_at, index_end) = boxes(data)[b"mdat"], boxes(data)[b"moov"]
    index = bytearray(data[index_at:index_end])
    table = index.find(b"stco") + 8
    for k in range(int.from_bytes(index[table : table + 4], "big")):
        place = slice(table + 4 + 4 * k, table + 8 + 4 * k)
        index[place] = (int.from_bytes(index[place], "big") + len(index)).to_bytes(4, "big")
    path.write_bytes(data[:frames_at] + index + data[frames_at:index_at] + data[index_end:])
    return path


def turned(path: Path) -> Path:
    """States in the MP4's track header that its pictures are to be shown a quarter turn clockwise."""
    data = path.read_bytes()
    matrix = data.find(b"tkhd") + 4 + 40
    turn = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    path.write_bytes(data[:matrix] + turn + data[matrix + 36 :])
    return path


def cut(path: Path, share: float) -> Path:
    """Keeps the first `share` of the file's bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path
