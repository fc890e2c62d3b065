"""Keyframes of a video: the sharpest frame of each interval, as photos in the work folder, reused by later runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dune_cli import console, optional
from dune_cli.errors import UserError
from dune_cli.io.cache import WorkFolder, key_of
from dune_cli.io.inputs import is_video
from dune_cli.io.listed_folder import is_whole, write_list
from dune_cli.io.outputs import atomic_directory, unique_stems
from dune_cli.io.video import Frame, Video
from dune_cli.provenance import sha256_of

FPS = 2.0  # frames a second, by default
SHARPNESS_SIDE_PX = 640
JPEG_QUALITY = 97
LIST, SCHEMA = "frames.json", "dune.frames/1"


def extract_keyframes(paths: Sequence[Path], fps: float | None, cache: WorkFolder) -> list[Path]:
    """The photos of `paths`, and instead of each video its keyframes: the sharpest frame of every 1 / fps seconds.

    Keyframes are files FOLDER/frames/KEY/VIDEO_000123.jpg, numbered as in the video, with their hashes in frames.json.
    They are written all together or not at all; a note says where they are damaged and extracted again. Raises what
    `Video` does for a video that cannot be read.
    """
    videos = [path for path in paths if is_video(path)]
    stems = dict(zip(videos, unique_stems(videos)))
    photos = []
    for path in paths:
        photos += _keyframes_of(path, stems[path], fps or FPS, cache) if path in stems else [path]
    return photos


def _keyframes_of(path: Path, stem: str, fps: float, cache: WorkFolder) -> list[Path]:
    if cache.folder is None:
        raise UserError(f"the frames of {path.name} are files of a work folder; name one of this machine with --work")
    with Video(path) as video:  # raises for a broken file before it is hashed
        folder = cache.folder / "frames" / key_of(sha256_of(path), fps, stem)
        if not is_whole(folder, LIST, SCHEMA):
            cv2 = optional.require("cv2", f"the video {path}")
            with atomic_directory(folder) as temporary:
                frames = console.progress(iter(video), f"frames of {path.name}", video.expected, "frame")
                for frame in sharpest_frames(frames, fps):
                    success, data = cv2.imencode(
                        ".jpg", np.ascontiguousarray(frame.rgb[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
                    )
                    assert success, "a frame can be encoded"
                    file = temporary / f"{stem}_{frame.index:06d}.jpg"
                    file.write_bytes(data.tobytes())
                write_list(temporary, LIST, SCHEMA)
    return sorted(folder.glob("*.jpg"))


def sharpest_frames(frames: Iterator[Frame], fps: float) -> Iterator[Frame]:
    """The sharpest frame of each interval of 1 / fps seconds; of equals the earliest."""
    best: Frame | None = None
    best_sharpness, interval = -math.inf, 0
    for frame in frames:
        index = math.floor(frame.time_s * fps + 1e-6)
        if best is not None and index != interval:
            yield best
            best, best_sharpness = None, -math.inf
        interval = index
        own_sharpness = sharpness(frame.rgb)
        if own_sharpness > best_sharpness:
            best, best_sharpness = frame, own_sharpness
    if best is not None:
        yield best


def sharpness(rgb: np.ndarray) -> float:
    """Variance of the Laplacian of a photo (H, W, 3) uint8 of at most 640 px (J. L. Pech-Pacheco et al., "Diatom
    autofocusing in brightfield microscopy", ICPR 2000)."""
    import cv2

    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    scale = SHARPNESS_SIDE_PX / max(grey.shape)
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())
