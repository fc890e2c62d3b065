"""Pictures one after the other as a video (MP4 or WebM by OpenCV) or an animated GIF (by Pillow)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dune_cli import optional
from dune_cli.errors import JobFailed
from dune_cli.io.image_file import silent_stderr
from dune_cli.io.outputs import atomic_path

CODECS = {".mp4": "mp4v", ".webm": "VP90"}  # MPEG-4 part 2 and VP9, which OpenCV's wheels can write
SUFFIXES = (*CODECS, ".gif")


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> int:
    """Writes `frames` (H, W, 3) uint8 RGB, all of one size, even but in a GIF, and returns their number.

    An MP4 holds MPEG-4 video (part 2), a WebM VP9, which browsers play. A GIF repeats for ever, has 256 colours a
    picture, and keeps time in hundredths of a second. JobFailed where OpenCV cannot write; ValueError without frames.
    """
    with atomic_path(path) as temporary:
        count = (_write_gif if Path(path).suffix.lower() == ".gif" else _write_coded)(temporary, frames, fps)
    return count


def _write_coded(path: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    cv2 = optional.require("cv2", "writing videos")
    writer, count = None, 0
    try:
        for frame in frames:
            if writer is None:
                height, width = frame.shape[:2]
                if height % 2 or width % 2:
                    raise ValueError(f"a video's sides are even, got {width} x {height}")
                code = cv2.VideoWriter_fourcc(*CODECS[path.suffix.lower()])
                with silent_stderr():  # it remarks that WebM has no such codes
                    writer = cv2.VideoWriter(str(path), code, fps, (width, height))
                if not writer.isOpened():
                    raise JobFailed(f"OpenCV writes no {path.suffix} here; name a .gif, or install opencv-python anew")
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
