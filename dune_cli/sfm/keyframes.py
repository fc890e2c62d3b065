"""The sharpest frame of each stretch of a video, as photos in the work folder, where later runs find them."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dune_cli import console, optional
from dune_cli.errors import UserError
from dune_cli.io.cache import WorkFolder, key_of, note_damaged
from dune_cli.io.inputs import is_video
from dune_cli.io.json_files import Fields, write_json
from dune_cli.io.outputs import atomic_directory, unique_stems
from dune_cli.io.safe_read import read_bytes, read_json
from dune_cli.io.video import Frame, Video
from dune_cli.provenance import sha256_of

FPS = 2.0  # frames a second that are taken where the user says nothing
SHARPNESS_SIDE_PX = 640
JPEG_QUALITY = 97
LIST, SCHEMA = "frames.json", "dune.frames/1"


def extract_keyframes(paths: Sequence[Path], fps: float | None, work: WorkFolder) -> list[Path]:
    """The photos of `paths`, and instead of each video its frames: of every 1 / fps seconds the sharpest one.

    Frames are files FOLDER/frames/KEY/VIDEO_000123.jpg, numbered by their place in the video, and there all together
    or not at all, with their hashes in frames.json; a note says where they are damaged and made again. Raises what
    `Video` does for one that cannot be read.
    """
    videos = [path for path in paths if is_video(path)]
    stems = dict(zip(videos, unique_stems(videos)))
    found = []
    for path in paths:
        found += _frames_of(path, stems[path], fps or FPS, work) if path in stems else [path]
    return found


def _frames_of(path: Path, stem: str, fps: float, work: WorkFolder) -> list[Path]:
    with Video(path) as video:  # says what is wrong with a file before it is hashed
        folder = work.folder / "frames" / key_of(sha256_of(path), fps, stem)
        if not _are_whole(folder):
            cv2 = optional.require("cv2", f"the video {path}")
            hashes = {}
            with atomic_directory(folder) as temporary:
                shown = console.progress(iter(video), f"frames of {path.name}", video.expected, "frame")
                for frame in sharpest_frames(shown, fps):
                    good, data = cv2.imencode(
                        ".jpg", np.ascontiguousarray(frame.rgb[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
                    )
                    assert good, "a frame is a picture"
                    file = temporary / f"{stem}_{frame.index:06d}.jpg"
                    file.write_bytes(data.tobytes())
                    hashes[file.name] = hashlib.sha256(data.tobytes()).hexdigest()
                write_json(temporary / LIST, {"schema": SCHEMA, "sha256": hashes})
    return sorted(folder.glob("*.jpg"))


def _are_whole(folder: Path) -> bool:
    """Whether the frames in `folder` are those that its list has; if not, they are removed, with a note."""
    if not folder.exists():
        return False
    try:
        facts = Fields(read_json(folder / LIST), str(folder / LIST))
        hashes = facts.object("sha256")
        if facts.text("schema") != SCHEMA or set(hashes) != {file.name for file in folder.glob("*.jpg")}:
            raise UserError("its frames are not those of its list")
        for name in hashes:
            if hashlib.sha256(read_bytes(folder / name, "a frame")).hexdigest() != hashes.text(name):
                raise UserError(f"{name} was changed")
    except UserError as error:
        note_damaged(folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


def sharpest_frames(frames: Iterator[Frame], fps: float) -> Iterator[Frame]:
    """Of the frames within each 1 / fps seconds the one with the most detail; the earlier one of equals."""
    held: Frame | None = None
    best, window = -math.inf, 0
    for frame in frames:
        own = math.floor(frame.time_s * fps + 1e-6)
        if held is not None and own != window:
            yield held
            held, best = None, -math.inf
        window = own
        detail = sharpness(frame.rgb)
        if detail > best:
            held, best = frame, detail
    if held is not None:
        yield held


def sharpness(rgb: np.ndarray) -> float:
    """Variance of the Laplacian of a photo (H, W, 3) uint8 of at most 640 px (J. L. Pech-Pacheco et al., "Diatom
    autofocusing in brightfield microscopy", ICPR 2000)."""
    import cv2

    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    scale = SHARPNESS_SIDE_PX / max(grey.shape)
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())
