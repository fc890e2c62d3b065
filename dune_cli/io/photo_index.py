"""The folder of `dune index`: a vector of each photo and video frame, and their list (docs/file-formats.md).

    index.json           `dune.index/1`: the encoder, counts, and the names and hashes of the other two files
    vectors-HASH.npy     (N, D) float32, rows of unit length
    photos-HASH.jsonl    N lines, a row each
    pending/             vectors of a run that has not ended
    .lock                held while a run writes

index.json is written last. So the folder holds the index before a run or after it, whenever the run is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.errors import JobFailed, UserError
from dune_cli.io.cache import read_cached, text_array, text_of, write_cached
from dune_cli.io.json_files import Fields, json_line, write_json
from dune_cli.io.outputs import atomic_path, check_output_folder
from dune_cli.io.safe_read import MIB, forward_slashes, open_regular, parse_json, read_bytes, read_json

SCHEMA = "dune.index/1"
PART_SCHEMA = "dune.index-part/1"
HEADER, PENDING, LOCK = "index.json", "pending", ".lock"
HEADER_LIMIT_BYTES = 16 * MIB
PHOTOS_LIMIT_BYTES = 1024 * MIB
PART_LIMIT_BYTES = 1024 * MIB
LARGEST_DIMENSION = 65_536
LARGEST_COUNT = 2**31
LINES_AT_ONCE = 100_000  # a call of the parser for each line would take longer than the lines
BLOCK_BYTES = 16 * MIB  # that are written or hashed at once
LOWEST_MTIME_NS = -(2**62)
_DATA_FILE = re.compile(r"(vectors-[0-9a-f]{16}\.npy|photos-[0-9a-f]{16}\.jsonl)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class IndexEncoder:
    """What the vectors depend on: the encoder, the pooling of its tokens, and the long side of its input in pixels.

    model: as `--model` takes it. name, sha256, licence: of the weights; sha256 is "" where there is no file.
    """

    model: str
    name: str
    sha256: str
    licence: str
    pooling: str
    size_px: int
    dimension: int

    def made_of(self) -> str:
        """The same text for encoders that make the same vectors."""
        return json.dumps([self.sha256 or self.name, self.pooling, self.size_px, self.dimension])

    def __str__(self) -> str:
        return f"{self.name} ({self.pooling}, {self.size_px} px)"


@dataclass(frozen=True)
class IndexedFile:
    """A photo or a video. path: relative to the index folder, with forward slashes. fps: of a video's frames."""

    path: str
    size_bytes: int
    mtime_ns: int
    sha256: str
    fps: float | None = None

    def is_unchanged(self, size_bytes: int, mtime_ns: int, fps: float | None) -> bool:
        """Whether the file on the disk, as `stat` describes it, is this one."""
        return (self.size_bytes, self.mtime_ns, self.fps) == (size_bytes, mtime_ns, fps)


@dataclass(frozen=True)
class IndexRow:
    """What a vector is of: a photo, or a video's frame by its index from 0 and its time in seconds."""

    file: IndexedFile
    frame: int | None = None
    time_s: float | None = None


@dataclass(frozen=True)
class IndexEntry:
    """A file with all its rows and their vectors (n, D) float32: one of a photo, any number of a video."""

    file: IndexedFile
    rows: tuple[IndexRow, ...]
    vectors: np.ndarray


@dataclass(frozen=True)
class SkippedFile:
    """A file that could not be read, and the reason as a sentence."""

    path: str
    reason: str


@dataclass(frozen=True)
class PhotoIndex:
    """An index that was opened: `vectors` (N, D) float32, mapped to memory; `rows[i]` says what `vectors[i]` is of."""

    folder: Path
    encoder: IndexEncoder
    rows: tuple[IndexRow, ...]
    vectors: np.ndarray
    header: dict[str, Any]

    def entries(self) -> list[IndexEntry]:
        """The files in the order of their rows."""
        found, start = [], 0
        while start < len(self.rows):
            file, end = self.rows[start].file, start + 1
            while end < len(self.rows) and self.rows[end].file.path == file.path:
                end += 1
            found.append(IndexEntry(file, self.rows[start:end], self.vectors[start:end]))
            start = end
        return found

    def check_hashes(self) -> None:
        """UserError where the content of a file is not what it was when it was written."""
        for part in ("vectors", "photos"):
            facts = self.header[part]
            with open_regular(self.folder / facts["file"], "a part of an index") as file:
                digest = hashlib.sha256()
                while piece := file.read(MIB):
                    digest.update(piece)
            if digest.hexdigest() != facts["sha256"]:
                raise _damaged(self.folder, f"the content of {facts['file']} has changed since it was written")


def relative_path(folder: Path, file: Path) -> str:
    """`file` relative to the index folder, with forward slashes; absolute where both are on different drives."""
    try:
        return forward_slashes_of(os.path.relpath(file.absolute(), os.path.realpath(folder)))
    except ValueError:
        return forward_slashes_of(str(file.absolute()))


def forward_slashes_of(path: str) -> str:
    """A path of this system with forward slashes; a backslash in a name stays where it is no separator."""
    return forward_slashes(path) if os.sep == "\\" else path


def located(folder: Path, path: str) -> Path:
    """The file of a row's path: relative to the working directory where it lies below it, else absolute."""
    absolute = Path(os.path.normpath(os.path.join(os.path.realpath(folder), path)))  # noqa: PTH118 (may be absolute)
    with contextlib.suppress(ValueError, OSError):
        return absolute.relative_to(Path.cwd())
    return absolute


def is_index(folder: str | Path) -> bool:
    """Whether there is an index in the folder, damaged or not."""
    return os.path.lexists(Path(folder) / HEADER)


def check_index_folder(path: str | Path) -> Path:
    """`path` as a folder that an index can be written to. UserError where it cannot, or holds anything else."""
    folder = check_output_folder(path, overwrite=True)
    if folder.is_dir() and not is_index(folder):
        others = [p.name for p in folder.iterdir() if p.name not in (PENDING, LOCK) and not _is_ours(p.name)]
        if others:
            raise UserError(f"{folder} holds files ({min(others)}, ...) and no index; name an empty or new folder")
    return folder


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Makes the folder and holds its lock, which the system drops when the process ends, however it ends. JobFailed
    where another process holds it."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    held = FileLock(folder / LOCK)
    try:
        held.acquire(blocking=False)
    except Timeout as error:
        raise JobFailed(
            f"another process is writing the index {folder}; wait until it has ended, or name another folder"
        ) from error
    try:
        yield
    finally:
        held.release()


def open_index(folder: str | Path) -> PhotoIndex:
    """The index in a folder. Sizes, counts and types are checked here, hashes by `PhotoIndex.check_hashes`.

    UserError for a folder without an index, and for one that is damaged.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no index folder {folder}; make one: dune index PHOTO... -o {folder}")
    if not is_index(folder):
        unfinished = ", only an unfinished one" if (folder / PENDING).is_dir() else ""
        raise UserError(f"{folder} holds no index (no {HEADER}){unfinished}; run: dune index PHOTO... -o {folder}")
    for last in (False, False, True):
        content = read_bytes(folder / HEADER, "the header of an index", HEADER_LIMIT_BYTES)
        try:
            return _open(folder)
        except UserError:  # a run may have replaced the index meanwhile
            if last or content == read_bytes(folder / HEADER, "the header of an index", HEADER_LIMIT_BYTES):
                raise
    raise AssertionError


def _open(folder: Path) -> PhotoIndex:
    where = str(folder / HEADER)
    header = Fields(read_json(where, "the header of an index", HEADER_LIMIT_BYTES), where)
    if header.text("schema") != SCHEMA:
        raise UserError(f"{where} is no index of this version of dune; its schema must be {SCHEMA}: index anew")
    of = header.object("encoder")
    dimension = header.integer("dimension", low=1, high=LARGEST_DIMENSION)
    count = header.integer("count", low=1, high=LARGEST_COUNT)
    encoder = IndexEncoder(
        *(of.text("model"), of.text("name"), of.text("sha256", ""), of.text("licence")),
        *(header.text("pooling"), header.integer("size_px", low=1, high=LARGEST_DIMENSION), dimension),
    )
    files = {}
    for part in ("vectors", "photos"):
        facts = header.object(part)
        name = facts.text("file")
        if not _is_ours(name) or not name.startswith(part) or not _SHA256.fullmatch(facts.text("sha256")):
            raise _damaged(folder, f"{HEADER} names no {part} file of an index")
        files[part] = folder / name
    vectors = _map_vectors(folder, files["vectors"], count, dimension)
    return PhotoIndex(folder, encoder, _read_rows(folder, files["photos"], count), vectors, dict(header))


def _map_vectors(folder: Path, path: Path, count: int, dimension: int) -> np.ndarray:
    with open_regular(path, "the vectors of an index") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # damaged bytes provoke anything
            raise _damaged(folder, f"{path.name} is no NPY file") from error
        offset = file.tell()
    if fortran or dtype != np.dtype("<f4") or shape != (count, dimension):
        raise _damaged(folder, f"{path.name} does not hold {count} x {dimension} float32 numbers, as {HEADER} says")
    if size != offset + 4 * count * dimension:
        raise _damaged(folder, f"{path.name} has {size} bytes where {offset + 4 * count * dimension} belong")
    return np.memmap(path, np.dtype("<f4"), "r", offset, (count, dimension))


def _read_rows(folder: Path, path: Path, count: int) -> tuple[IndexRow, ...]:
    content = read_bytes(path, "the photo list of an index", PHOTOS_LIMIT_BYTES)
    lines = content.splitlines()
    if len(lines) != count or not content.endswith(b"\n"):
        raise _damaged(folder, f"{path.name} has {len(lines)} lines where {HEADER} counts {count}")
    values: list[Any] = []
    for start in range(0, count, LINES_AT_ONCE):
        values += parse_json(b"[" + b",".join(lines[start : start + LINES_AT_ONCE]) + b"]", str(path))
    if len(values) != count:
        raise _damaged(folder, f"{path.name} has {len(values)} entries where {HEADER} counts {count}")
    rows: list[IndexRow] = []
    for number, value in enumerate(values):
        file = file_of(value, f"{path}: line {number + 1}")
        if rows and rows[-1].file.path == file.path:
            if rows[-1].file != file:
                raise _damaged(folder, f"{path.name} describes a file in two ways in line {number + 1}")
            file = rows[-1].file
        rows.append(_row_of(file, value, f"{path}: line {number + 1}"))
    return tuple(rows)


def file_of(value: Any, where: str) -> IndexedFile:
    """The file that a line of the list describes. UserError where it is none."""
    if (
        isinstance(value, dict)
        and isinstance(value.get("path"), str)
        and isinstance(value.get("sha256"), str)
        and type(value.get("size_bytes")) is int
        and type(value.get("mtime_ns")) is int
        and value["path"]
        and "\0" not in value["path"]
        and _SHA256.fullmatch(value["sha256"])
        and value["size_bytes"] >= 0
        and value["mtime_ns"] >= LOWEST_MTIME_NS
    ):
        fps = value.get("fps")
        if fps is None or (type(fps) in (int, float) and fps > 0):
            return IndexedFile(
                value["path"], value["size_bytes"], value["mtime_ns"], value["sha256"], None if fps is None else fps
            )
    raise UserError(f"{where} describes no file of an index (path, size_bytes, mtime_ns, sha256); index anew")


def _row_of(file: IndexedFile, value: dict[str, Any], where: str) -> IndexRow:
    if file.fps is None:
        return IndexRow(file)
    frame = Fields(value, where).object("frame")
    return IndexRow(file, frame.integer("index", low=0), frame.number("time_s", low=0))


def _line(row: IndexRow) -> dict[str, Any]:
    file = row.file
    line: dict[str, Any] = {
        "path": file.path,
        "size_bytes": file.size_bytes,
        "mtime_ns": file.mtime_ns,
        "sha256": file.sha256,
    }
    if row.frame is not None:
        line |= {"fps": file.fps, "frame": {"index": row.frame, "time_s": row.time_s}}
    return line


def write_index(
    folder: Path,
    encoder: IndexEncoder,
    entries: Sequence[IndexEntry],
    skipped: Sequence[SkippedFile],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Writes the index of these entries, in their order, and removes what it replaces. Returns the header.

    The same entries make the same files. To be called with the lock held. OSError (a full disk) passes; the index
    before stays.
    """
    rows = [row for entry in entries for row in entry.rows]
    vectors = _write_named(folder, "vectors-{}.npy", lambda: _npy_pieces(entries, len(rows), encoder.dimension))
    photos = _write_named(folder, "photos-{}.jsonl", lambda: ((json_line(_line(row)) + "\n").encode() for row in rows))
    header = {
        "schema": SCHEMA,
        "encoder": {
            "model": encoder.model,
            "name": encoder.name,
            "sha256": encoder.sha256 or None,
            "licence": encoder.licence,
        },
        "pooling": encoder.pooling,
        "size_px": encoder.size_px,
        "dimension": encoder.dimension,
        "count": len(rows),
        "files": len(entries),
        "vectors": vectors,
        "photos": photos,
        "skipped": [{"path": one.path, "reason": one.reason} for one in skipped],
        "provenance": provenance,
    }
    write_json(folder / HEADER, header)
    _remove_others(folder, {vectors["file"], photos["file"]})
    return header


def _write_named(folder: Path, pattern: str, pieces: Any) -> dict[str, str]:
    """Writes the pieces of bytes that `pieces()` gives to a file named by their hash; its name and whole hash."""
    digest = hashlib.sha256()
    for piece in pieces():
        digest.update(piece)
    sha256 = digest.hexdigest()
    target = folder / pattern.format(sha256[:16])
    with atomic_path(target) as temporary, temporary.open("wb") as file:
        for piece in pieces():
            file.write(piece)
    return {"file": target.name, "sha256": sha256}


def _npy_pieces(entries: Iterable[IndexEntry], count: int, dimension: int) -> Iterator[bytes]:
    header = io.BytesIO()
    facts = {"descr": "<f4", "fortran_order": False, "shape": (count, dimension)}
    np.lib.format.write_array_header_1_0(header, facts)
    yield header.getvalue()
    block: list[np.ndarray] = []
    waiting = 0
    for entry in entries:
        block.append(np.asarray(entry.vectors, "<f4"))
        waiting += block[-1].nbytes
        if waiting >= BLOCK_BYTES:
            yield np.concatenate(block).tobytes()
            block, waiting = [], 0
    if block:
        yield np.concatenate(block).tobytes()


def _remove_others(folder: Path, names: set[str]) -> None:
    """What an index before, or a killed run, has left."""
    for path in folder.iterdir():
        if path.name not in names and _is_ours(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def _is_ours(name: str) -> bool:
    return _DATA_FILE.fullmatch(name) is not None or name.startswith(".dune-")


def _damaged(folder: Path, reason: str) -> UserError:
    return UserError(f"the index {folder} is damaged: {reason}; make it anew: dune index ... --overwrite")


class PendingEntries:
    """What a run has computed and not yet put into the index: a file for every few entries, so that a killed run goes
    on. Files of another encoder and damaged ones are removed."""

    def __init__(self, folder: Path, encoder: IndexEncoder) -> None:
        self.folder, self.encoder = folder / PENDING, encoder
        self._next = 0

    def read(self) -> list[IndexEntry]:
        """All entries, in the order in which they were added."""
        found: list[IndexEntry] = []
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else ():
            entries = self._read(path)
            if entries is None:
                path.unlink(missing_ok=True)
                continue
            found += entries
            if path.stem.isdecimal() and len(path.stem) == 8:
                self._next = max(self._next, int(path.stem) + 1)
        return found

    def _read(self, path: Path) -> list[IndexEntry] | None:
        layout = {"vectors": ("f", ("N", self.encoder.dimension)), "rows": ("u", ("T",))}
        arrays = read_cached(path, PART_SCHEMA, self.encoder.made_of(), PART_LIMIT_BYTES, layout)
        if arrays is None:
            return None
        entries: list[IndexEntry] = []
        start = 0
        try:
            for value, count in parse_json(text_of(arrays["rows"]), str(path)):
                file = file_of(value[0] if value else None, str(path))
                rows = tuple(_row_of(file, one, str(path)) for one in value)
                if len(rows) != count or start + count > len(arrays["vectors"]):
                    raise UserError(f"{path} is damaged")
                entries.append(IndexEntry(file, rows, arrays["vectors"][start : start + count]))
                start += count
        except (ValueError, TypeError):  # a checksum protects it: written by something else
            return None
        return entries

    def add(self, entries: Sequence[IndexEntry]) -> None:
        """Writes entries as one file. OSError (a full disk) passes."""
        if not entries:
            return
        lines = [([_line(row) for row in entry.rows], len(entry.rows)) for entry in entries]
        arrays = {
            "vectors": np.concatenate([entry.vectors for entry in entries]).astype(np.float32),
            "rows": text_array(json_line(lines)),
        }
        write_cached(self.folder / f"{self._next:08d}.safetensors", PART_SCHEMA, self.encoder.made_of(), arrays)
        self._next += 1

    def clear(self) -> None:
        """Removes the files and their folder."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.suffix == ".safetensors" or path.name.startswith(".dune-"):
                    path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # somebody keeps something there
                self.folder.rmdir()
