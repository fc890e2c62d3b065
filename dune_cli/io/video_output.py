"""Pictures one after the other as a video (MP4 by OpenCV) or an animated GIF (by Pillow)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dune_cli import optional
from dune_cli.errors import JobFailed
from dune_cli.io.outputs import atomic_path

SUFFIXES = (".mp4", ".gif")
CODEC = "mp4v"  # MPEG-4 part 2, which OpenCV's wheels can write


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> int:
    """Writes `frames` (H, W, 3) uint8 RGB, all of one size, even in an MP4, and returns their number.

    An MP4 holds MPEG-4 video. A GIF repeats for ever, has 256 colours a picture, and keeps time in hundredths of a
    second. JobFailed where OpenCV cannot write; ValueError without frames.
    """
    with atomic_path(path) as temporary:
        count = (_write_gif if Path(path).suffix.lower() == ".gif" else _write_mp4)(temporary, frames, fps)
    return count


def _write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    cv2 = optional.require("cv2", "writing videos")
    writer, count = None, 0
    try:
        for frame in frames:
            if writer is None:
                height, width = frame.shape[:2]
                if height % 2 or width % 2:
                    raise ValueError(f"a video's sides are even, got {width} x {height}")
                writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*CODEC), fps, (width, height))
                if not writer.isOpened():
                    raise JobFailed("OpenCV cannot write MPEG-4 video here; name a .gif, or install opencv-python anew")
            writer.write(np.ascontiguousarray(frame[..., ::-1]))
            count += 1
    finally:
        if writer is not None:
            writer.release()
    if writer is None:
        raise ValueError("a video needs frames")
    return count


def _write_gif(path: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    from PIL import Image

    pictures = [Image.fromarray(np.ascontiguousarray(frame)).quantize(256) for frame in frames]
    if not pictures:
        raise ValueError("a video needs frames")
    milliseconds = max(20, round(100 / fps) * 10)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
    return len(pictures)
