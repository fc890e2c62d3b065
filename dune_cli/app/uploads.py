"""Photos and videos that a browser sends: their limits, and the private folder in which they stay."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dune_cli import signals
from dune_cli.errors import UserError
from dune_cli.io.inputs import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_video
from dune_cli.io.photos import read_header

MB = 1_000_000
PIECE_BYTES = 1 << 20
LONGEST_NAME = 80


@dataclass(frozen=True)
class Limits:
    """Of one upload: files, bytes in all; and photos that are worked on, with the frames of videos."""

    files: int = 50
    total_bytes: int = 500 * MB
    photos: int = 40


class Sent(Protocol):
    """A file of a browser's form: its name, and its bytes."""

    filename: str | None

    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True)
class Upload:
    """Files of one upload in a folder of their own."""

    folder: Path
    files: list[Path]
    limits: Limits

    def evenly(self, photos: Sequence[Path]) -> list[Path]:
        """At most as many of `photos` as the limits allow, evenly spread."""
        count = len(photos)
        kept = min(count, self.limits.photos)
        return [photos[index * (count - 1) // max(kept - 1, 1)] for index in range(kept)]

    def remove(self) -> None:
        """Deletes the folder with the results in it."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder that only this user can open (0700). It is deleted after the block, and when the process is ended by
    force."""
    folder = Path(tempfile.mkdtemp(prefix="dune-app-"))
    with signals.temporary(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def receive(sent: Sequence[Sent], folder: Path, limits: Limits) -> Upload:
    """Stores files of a form in `folder`, which is made. UserError, and nothing is left, for none, for too many or too
    large ones, and for what is neither photo nor video."""
    named = [(one, _safe_name(one.filename or "")) for one in sent if one.filename]
    if not named:
        raise UserError("no file came; drop photos or a video first")
    if len(named) > limits.files:
        raise UserError(f"{len(named)} files came, and at most {limits.files} are taken at once; leave some out")
    for one, name in named:
        if Path(name).suffix.lower() not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
            raise UserError(
                f"{one.filename} is neither a photo nor a video; drop JPEG, PNG, HEIC, WebP, MP4 or the like"
            )
    upload = Upload(folder, [], limits)
    inside = folder / "photos"
    inside.mkdir(mode=0o700, parents=True)
    try:
        left = limits.total_bytes
        for one, name in named:
            path = _unused(inside / name)
            left -= _store(one, path, left, limits)
            if not is_video(path) and read_header(path) is None:
                raise UserError(f"{one.filename} is no photo that can be read; open it and save it as JPEG or PNG")
            upload.files.append(path)
    except BaseException:
        upload.remove()
        raise
    return upload


def _store(one: Sent, path: Path, left: int, limits: Limits) -> int:
    written = 0
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while piece := one.read(PIECE_BYTES):
            written += len(piece)
            if written > left:
                raise UserError(too_large(limits))
            file.write(piece)
    if not written:
        raise UserError(f"{one.filename} is empty; drop another file")
    return written


def too_large(limits: Limits) -> str:
    """The sentence about an upload over its limit."""
    return f"the files have more than {limits.total_bytes // MB} MB together; leave some out, or make them smaller"


def _safe_name(name: str) -> str:
    """A file name without folders and without what a shell or a page would read otherwise."""
    base = re.split(r"[/\\]", name)[-1]
    stem, dot, ending = base.rpartition(".")
    stem = re.sub(r"[^\w-]+", "_", stem if dot else base).strip("_")[:LONGEST_NAME] or "photo"
    return f"{stem}.{re.sub(r'[^A-Za-z0-9]', '', ending)}" if dot else stem


def _unused(path: Path) -> Path:
    """`path`, numbered where a file of the upload has its stem already: results are named by stems."""
    taken = {other.stem for other in path.parent.iterdir()}
    stem, count = path.stem, 1
    while path.stem in taken:
        count += 1
        path = path.with_name(f"{stem}_{count}{path.suffix}")
    return path
