"""Photos and videos to an index for `dune search`: new and changed files are encoded, the rest is kept.

The folder is that of io/photo_index.py; docs/file-formats.md describes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console
from dune_cli.errors import PackageMissing, UserError
from dune_cli.io.inputs import is_video, natural_key
from dune_cli.io.photo_index import (
    IndexedFile,
    IndexEncoder,
    IndexEntry,
    IndexRow,
    PendingEntries,
    SkippedFile,
    is_index,
    lock,
    open_index,
    relative_path,
    write_index,
)
from dune_cli.io.photos import read_photo
from dune_cli.io.video import Video
from dune_cli.provenance import Run, sha256_of
from dune_cli.sfm.global_descriptors import GlobalDescriptor

DEFAULT_FPS = 1.0
SAVE_VECTORS = 64  # after which what is computed is saved
SAVE_SECONDS = 15.0


@dataclass(frozen=True)
class IndexSettings:
    """batch_size: photos of one prepared size in one pass. fps: frames per second of videos. keep: files of the index
    that are not named stay. overwrite: an index of another encoder, a damaged one, and one that has none of the named
    files may be replaced."""

    batch_size: int = 1
    fps: float = DEFAULT_FPS
    keep: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class IndexUpdate:
    """What a run did. Files: encoded in this run or an unfinished one before it; unchanged, of which the vectors were
    taken over; dropped, which the index had. header: what index.json holds."""

    folder: Path
    header: dict[str, Any]
    encoded: int
    unchanged: int
    dropped: int
    skipped: tuple[SkippedFile, ...]


@dataclass
class _Encoding:
    """A file that is being encoded: its vectors come batch by batch."""

    file: IndexedFile
    rows: list[IndexRow] = field(default_factory=list)
    vectors: list[np.ndarray] = field(default_factory=list)
    is_read: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether all of its vectors are there."""
        return self.is_read and len(self.vectors) == len(self.rows)

    def entry(self) -> IndexEntry:
        """The whole file."""
        return IndexEntry(self.file, tuple(self.rows), np.stack(self.vectors))


def update(
    folder: str | Path,
    paths: Sequence[Path],
    descriptor: GlobalDescriptor,
    settings: IndexSettings | None = None,
    run: Run | None = None,
    **provenance: Any,
) -> IndexUpdate:
    """Makes or renews the index of these photos and videos in `folder`; the index then holds them and no others.

    A file whose size and time of change are those of the index is taken for unchanged, and so is one whose content is.
    What is computed is saved now and then, so that a run after a killed one goes on. Files that cannot be read are
    left out with a note. UserError for an index of another encoder, a damaged one, or one that has none of the named
    files, each without `overwrite`, and where no file can be read; JobFailed while another process writes the index.
    """
    folder, run, settings = Path(folder).expanduser(), run or Run(), settings or IndexSettings()
    with lock(folder):
        before = _entries_before(folder, descriptor.encoder, settings)
        pending = PendingEntries(folder, descriptor.encoder)
        plan = _Plan(folder, before, pending.read(), settings.fps)
        plan.compare(paths)
        others = [entry for path, entry in before.items() if path not in plan.named]
        if others and not settings.keep:
            _check_dropped(folder, others, plan, settings.overwrite)
        for entries in _encoded(plan, descriptor, settings.batch_size, run):
            pending.add(entries)
            plan.done += entries
            plan.encoded += len(entries)
        entries = sorted([*plan.done, *(others if settings.keep else ())], key=lambda e: natural_key(Path(e.file.path)))
        if not entries:
            raise UserError(f"none of the {len(paths)} inputs can be read, such as {_first_reason(plan.skipped)}")
        with run.stage("write"):
            facts = run.provenance([descriptor.network.source], [], **provenance)
            header = write_index(folder, descriptor.encoder, entries, plan.skipped, facts)
            pending.clear()
    dropped = len(before.keys() - {entry.file.path for entry in entries})
    unchanged = len(plan.done) - plan.encoded
    return IndexUpdate(folder, header, plan.encoded, unchanged, dropped, tuple(plan.skipped))


def _entries_before(folder: Path, encoder: IndexEncoder, settings: IndexSettings) -> dict[str, IndexEntry]:
    """The files of the index in the folder, if there is one and its vectors can be taken over."""
    if not is_index(folder):
        return {}
    try:
        index = open_index(folder)
        index.check_hashes()
    except UserError as error:
        if not settings.overwrite:
            raise
        console.note(f"made anew: {error}")
        return {}
    if index.encoder.made_of() != encoder.made_of():
        if not settings.overwrite:
            raise UserError(
                f"the index {folder} was made by {index.encoder} and cannot be continued by {encoder}; give the same "
                "--model, --pooling and --size, name another folder, or add --overwrite to encode all photos again"
            )
        console.note(f"{folder} was made by {index.encoder}; all photos are encoded again by {encoder}")
        return {}
    return {entry.file.path: entry for entry in index.entries()}


def _check_dropped(folder: Path, others: Sequence[IndexEntry], plan: _Plan, overwrite: bool) -> None:
    count = len(others)
    if not plan.has_known and not overwrite:
        raise UserError(
            f"the index {folder} holds {count} files, none of which is among the inputs; add --keep to keep them, "
            "--overwrite to drop them, or name another folder"
        )
    console.note(f"{count} files of the index are not among the inputs and are dropped (--keep keeps them)")


class _Plan:
    """Which of the named files the index (`before`) or an unfinished run (`pending`) has, and what is to be done."""

    def __init__(self, folder: Path, before: dict[str, IndexEntry], pending: Sequence[IndexEntry], fps: float) -> None:
        self.folder, self.fps, self.before = folder, fps, before
        self.pending = {entry.file.path: entry for entry in pending}
        self.by_content = {(e.file.sha256, e.file.fps): e for e in (*before.values(), *pending)}
        self.named: set[str] = set()
        self.done: list[IndexEntry] = []
        self.to_read: list[Path] = []
        self.skipped: list[SkippedFile] = []
        self.encoded = 0  # of the files in `done`, by this run or the unfinished one

    @property
    def has_known(self) -> bool:
        """Whether the index has any of the named files."""
        return any(path in self.before for path in self.named)

    def compare(self, paths: Iterable[Path]) -> None:
        """Takes over files whose size and time of change are known; the others are `to_read`. Each is taken once."""
        for path in paths:
            name = relative_path(self.folder, path)
            if name in self.named:
                continue
            self.named.add(name)
            try:
                status = path.stat()
            except OSError as error:
                self.skip(name, path, f"cannot read {path}: {error.strerror or error}")
                continue
            for known in (self.before, self.pending):
                entry = known.get(name)
                if entry is not None and entry.file.is_unchanged(status.st_size, status.st_mtime_ns, self._fps(path)):
                    self._take_over(entry, known is self.pending)
                    break
            else:
                self.to_read.append(path)

    def identify(self, path: Path) -> IndexedFile | None:
        """The file with its hash; None where the vectors of that content are known and were taken over. UserError for
        one that cannot be read."""
        try:
            status = path.stat()
            sha256 = sha256_of(path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        name, fps = relative_path(self.folder, path), self._fps(path)
        file = IndexedFile(name, status.st_size, status.st_mtime_ns, sha256, fps)
        same = self.by_content.get((sha256, fps))
        if same is None:
            return file
        rows = tuple(IndexRow(file, row.frame, row.time_s) for row in same.rows)
        self._take_over(IndexEntry(file, rows, same.vectors), same.file.path not in self.before)
        return None

    def _fps(self, path: Path) -> float | None:
        return self.fps if is_video(path) else None

    def _take_over(self, entry: IndexEntry, from_pending: bool) -> None:
        self.done.append(entry)
        self.encoded += from_pending

    def skip(self, name: str, path: Path, reason: str) -> None:
        """Leaves a file out, with a note."""
        self.skipped.append(SkippedFile(name, reason))
        named = reason if str(path) in reason else f"{path}: {reason}"
        console.note_once(f"left out: {named}", "files left out")


def _first_reason(skipped: Sequence[SkippedFile]) -> str:
    return f"{os.path.basename(skipped[0].path)}: {skipped[0].reason}"  # noqa: PTH119 (a relative path, as text)


def _encoded(plan: _Plan, descriptor: GlobalDescriptor, batch_size: int, run: Run) -> Iterator[list[IndexEntry]]:
    """The files that are to be encoded, a few whenever they should be saved."""
    ready: list[IndexEntry] = []
    under_way: list[_Encoding] = []
    saved = time.monotonic()
    for batch in _batches(_images(plan, descriptor, under_way, run), batch_size):
        if batch:
            with run.stage("encode"):
                vectors = descriptor.describe([image for _, image in batch])
            for (encoding, _), vector in zip(batch, vectors):
                encoding.vectors.append(vector)
        ready += [encoding.entry() for encoding in under_way if encoding.is_whole]
        under_way[:] = [encoding for encoding in under_way if not encoding.is_whole]
        waited = time.monotonic() - saved
        if ready and (sum(len(entry.rows) for entry in ready) >= SAVE_VECTORS or waited > SAVE_SECONDS):
            yield ready
            ready, saved = [], time.monotonic()
    if ready:
        yield ready


Image = tuple[_Encoding, np.ndarray]


def _batches(images: Iterator[Image | None], batch_size: int) -> Iterator[list[Image]]:
    """Consecutive images of one shape, up to `batch_size`; an empty batch at the end of each file (None)."""
    batch: list[Image] = []
    for image in images:
        if image is None:
            if not batch:
                yield []
            continue
        if batch and (len(batch) == batch_size or batch[0][1].shape != image[1].shape):
            yield batch
            batch = []
        batch.append(image)
        if len(batch) == batch_size:
            yield batch
            batch = []
    yield batch


def _images(plan: _Plan, descriptor: GlobalDescriptor, under_way: list[_Encoding], run: Run) -> Iterator[Image | None]:
    """The prepared images of all files to read, None at the end of each file; files are added to `under_way`."""
    unit = "file" if any(map(is_video, plan.to_read)) else "photo"
    for path in console.progress(plan.to_read, "index", len(plan.to_read), unit):
        encoding = None
        try:
            with run.stage("read"):
                file = plan.identify(path)
            if file is None:
                continue
            encoding = _Encoding(file)
            for row, rgb in _pictures(path, file, run):
                with run.stage("prepare"):
                    image = descriptor.prepare(rgb)
                if not encoding.rows:
                    under_way.append(encoding)
                encoding.rows.append(row)
                yield encoding, image
        except (UserError, PackageMissing) as error:
            plan.skip(relative_path(plan.folder, path), path, str(error))
            under_way[:] = [one for one in under_way if one is not encoding]
            continue
        encoding.is_read = True
        yield None


def _pictures(path: Path, file: IndexedFile, run: Run) -> Iterator[tuple[IndexRow, np.ndarray]]:
    """The rows of a file with their pictures (H, W, 3) uint8."""
    if not is_video(path):
        with run.stage("read"):
            photo = read_photo(path)
        yield IndexRow(file), photo.rgb
        return
    with Video(path, file.fps) as video:
        for frame in video:
            yield IndexRow(file, frame.index, round(frame.time_s, 6)), frame.rgb


def document(result: IndexUpdate) -> dict[str, Any]:
    """The JSON that the command prints: the header of the index (`dune.index/1`), its folder and what the run did."""
    return {
        **result.header,
        "folder": str(result.folder),
        "run": {
            "encoded": result.encoded,
            "unchanged": result.unchanged,
            "dropped": result.dropped,
            "skipped": len(result.skipped),
        },
    }
