"""Results kept between runs: arrays as safetensors, entries as JSON Lines, and a folder of arrays by kind and key.

Every file carries a schema, a checksum, and a `fingerprint` of what its content depends on (hashes, settings). A file
that is missing, damaged, of another schema or with another fingerprint is not used: the caller computes it again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import __version__, console
from dune_cli.errors import DuneError, UserError
from dune_cli.io.json_files import json_line
from dune_cli.io.object_stores import is_url
from dune_cli.io.outputs import atomic_path, check_output_folder, scratch_folder
from dune_cli.io.safe_read import ARRAYS_LIMIT_BYTES, MIB, open_regular, parse_json, read_bytes
from dune_cli.io.work_objects import WorkObjects

Layout = Mapping[str, tuple[str, tuple[int | str, ...]]]
SCHEMA = "dune.work/1"  # of a work folder's entries
NAME = "dune-work"  # of a work folder that was not asked for
HEADER_LIMIT_BYTES = 100_000_000  # safetensors' own
CHECK = "check"  # the key of a line's checksum
LINES_LIMIT_BYTES = 2048 * MIB
LINE_LIMIT_BYTES = MIB
_HEADER = "dune"
_COUNTING = threading.Lock()
_DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16, "F32": np.float32, "F64": np.float64,
}  # fmt: skip


def write_cached(path: str | Path, schema: str, fingerprint: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `arrays` (booleans and numbers of any shape) atomically; equal contents make equal files.

    `schema` names the layout of the arrays and its version. OSError (a full disk) passes.
    """
    content = cache_bytes(schema, fingerprint, arrays)
    with atomic_path(path, flush=False) as temporary:  # its checksum tells whether a power failure damaged it
        temporary.write_bytes(content)


def cache_bytes(schema: str, fingerprint: str, arrays: Mapping[str, np.ndarray]) -> bytes:
    """The content of the file that `write_cached` writes."""
    from safetensors.numpy import save

    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    metadata = {"schema": schema, "made_of": fingerprint, "sha256": _checksum(contiguous)}
    return save(contiguous, {_HEADER: json.dumps(metadata)})


def read_cached(
    path: str | Path,
    schema: str,
    fingerprint: str,
    limit_bytes: int = ARRAYS_LIMIT_BYTES,
    layout: Layout | None = None,
) -> dict[str, np.ndarray] | None:
    """The arrays of a file that `write_cached` wrote with the same `schema` and `fingerprint`; None otherwise.

    A note names a file that is damaged, of another schema, changed since it was written, or without the arrays of
    `layout` (see `check_layout`). A file with another fingerprint is passed over without a note.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return None
    return cached_arrays(lambda: read_bytes(path, "a cache file", limit_bytes), path, schema, fingerprint, layout)


def cached_arrays(
    read: Callable[[], bytes], place: Path | str, schema: str, fingerprint: str, layout: Layout | None = None
) -> dict[str, np.ndarray] | None:
    """`read_cached` of the content that `read` gives of a `place`, a path or URL, which notes name."""
    from safetensors import deserialize

    try:
        content = read()
        metadata = _metadata(content[8 : 8 + int.from_bytes(content[:8], "little")])
        if not _is_current(metadata, schema, fingerprint, place):
            return None
        arrays = {
            name: np.frombuffer(bytearray(tensor["data"]), _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
            for name, tensor in deserialize(content)
        }
        if metadata["sha256"] != _checksum(arrays):
            raise UserError("its checksum does not fit")
        if layout is not None:
            check_layout(arrays, layout)
    except Exception as error:  # damaged bytes provoke anything
        note_damaged(place, error)
        return None
    return arrays


def check_layout(arrays: Mapping[str, np.ndarray], layout: Layout) -> None:
    """Raises ValueError unless `arrays` has all arrays of `layout`: name -> (kinds, shape).

    Kinds are NumPy's letters of dtypes, such as "iu"; "f" stands for finite floats and "F" for any floats. The same
    letter in shapes stands for the same length.
    """
    lengths: dict[str, int] = {}
    for name, (kinds, shape) in layout.items():
        if name not in arrays:
            raise ValueError(f"it lacks {name}")
        array = arrays[name]
        fits = array.dtype.kind in kinds.lower() and array.ndim == len(shape)
        for side, length in zip(shape, array.shape) if fits else ():
            fits &= length == (lengths.setdefault(side, length) if isinstance(side, str) else side)
        if not fits:
            raise ValueError(f"{name} is {array.dtype} {array.shape}")
        if array.dtype.kind == "f" and "f" in kinds and not np.isfinite(array).all():
            raise ValueError(f"{name} holds numbers that are not finite")


def check_cached(path: str | Path, schema: str, fingerprint: str, limit_bytes: int = ARRAYS_LIMIT_BYTES) -> bool:
    """Whether `read_cached` would return the arrays, with the same notes, and one array in memory at a time."""
    from safetensors import safe_open

    path = Path(path)
    if not os.path.lexists(path):
        return False
    try:
        with open_regular(path, "a cache file", limit_bytes) as file:
            length = int.from_bytes(file.read(8), "little")
            metadata = _metadata(file.read(min(length, HEADER_LIMIT_BYTES)))
        if not _is_current(metadata, schema, fingerprint, path):
            return False
        digest = hashlib.sha256()
        with safe_open(path, "np") as tensors:
            for name in sorted(tensors.keys()):
                _add(digest, name, tensors.get_tensor(name))
        if metadata["sha256"] != digest.hexdigest():
            raise UserError("its checksum does not fit")
    except Exception as error:  # damaged bytes provoke anything
        note_damaged(path, error)
        return False
    return True


def note_damaged(path: Path | str, reason: object) -> None:
    """A note that a cached file is not used, and why."""
    text = " ".join(str(reason).split())[:120]
    console.note(f"{path} is damaged ({text}); it is computed again")


def text_array(text: str) -> np.ndarray:
    """A text as the array of its UTF-8 bytes."""
    return np.frombuffer(text.encode(), np.uint8)


def text_of(array: np.ndarray) -> str:
    """The text that `text_array` made an array of. ValueError for other arrays."""
    if array.dtype != np.uint8 or array.ndim != 1:
        raise ValueError("it holds numbers where a text is needed")
    return array.tobytes().decode()


def _metadata(header: bytes) -> dict[str, str]:
    metadata = parse_json(parse_json(header, "its header")["__metadata__"][_HEADER], "its header")
    if not all(isinstance(metadata[name], str) for name in ("schema", "made_of", "sha256")):
        raise UserError("its header is of another form")
    return metadata


def _is_current(metadata: dict[str, str], schema: str, fingerprint: str, path: Path | str) -> bool:
    if metadata["schema"] != schema:
        console.note(f"{path} was written by another version of dune; it is computed again")
        return False
    return metadata["made_of"] == fingerprint


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        _add(digest, name, arrays[name])
    return digest.hexdigest()


def _add(digest: Any, name: str, array: np.ndarray) -> None:
    digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
    digest.update(memoryview(np.ascontiguousarray(array)).cast("B") if array.size else b"")


def add_checksum(entry: Mapping[str, Any], fingerprint: str = "") -> dict[str, Any]:
    """`entry` as plain JSON values, with a checksum of them and of `fingerprint` in "check"."""
    plain = json.loads(json_line(entry))
    plain.pop(CHECK, None)
    return plain | {CHECK: _json_checksum(plain, fingerprint)}


def verified(value: Any, fingerprint: str = "") -> dict[str, Any] | None:
    """The entry that `add_checksum` was given with the same `fingerprint`; None for anything else."""
    if not isinstance(value, dict) or not isinstance(value.get(CHECK), str):
        return None
    plain = {name: item for name, item in value.items() if name != CHECK}
    return plain if _json_checksum(plain, fingerprint) == value[CHECK] else None


def append_line(path: str | Path, entry: Mapping[str, Any], fingerprint: str = "") -> None:
    """Appends `entry` with its checksum as one line of JSON; begins a new line after one that a kill cut off.

    UserError where `path` is a folder, a FIFO or a device. OSError (a full disk) passes.
    """
    line = json.dumps(add_checksum(entry, fingerprint)).encode() + b"\n"
    try:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags, 0o666)
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder, where a log is written; remove it") from error
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a regular file, where a log is written; remove it")
        cut_off = False
        if status.st_size:
            file.seek(status.st_size - 1)
            cut_off = file.read(1) != b"\n"
        file.write((b"\n" if cut_off else b"") + line)


def read_lines(path: str | Path, what: str, fingerprint: str = "") -> tuple[list[dict[str, Any]], int]:
    """The entries of a file that `append_line` wrote with the same `fingerprint`, in order, and the number of other
    lines: damaged, or with another fingerprint. A last line without its end, which a kill leaves, is passed over.

    A missing file has no lines. Raises UserError as `open_regular`; `what` names the kind of file in its message.
    """
    entries: list[dict[str, Any]] = []
    damaged = 0
    if not os.path.lexists(path):
        return entries, damaged
    with open_regular(path, what, LINES_LIMIT_BYTES) as file:
        while line := file.readline(LINE_LIMIT_BYTES):
            if not line.endswith(b"\n") and len(line) < LINE_LIMIT_BYTES:
                break  # cut off by a kill
            if not line.strip():
                continue
            entry = _entry(line, fingerprint)
            if entry is None:
                damaged += 1
            else:
                entries.append(entry)
    return entries, damaged


def _entry(line: bytes, fingerprint: str) -> dict[str, Any] | None:
    try:
        return verified(parse_json(line, "a line"), fingerprint)
    except (DuneError, UnicodeDecodeError):
        return None


def _json_checksum(plain: Mapping[str, Any], fingerprint: str) -> str:
    text = json.dumps([fingerprint, plain], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class WorkFolder:
    """Arrays by kind and key, one file each, `KIND/ab/KEY.safetensors`, so that a second or interrupted run continues.

    The files are in a folder, or under a URL of an object store (s3://bucket/work), with the same names and bytes.
    `counts` has the number of entries that this run computed ("KIND") and read ("KIND, found"). `place` is the absolute
    path or the URL, `folder` the path, which a URL has none of; both are None where nothing is kept. Several threads
    may use it.
    """

    def __init__(self, place: str | Path | None) -> None:
        """UserError where the folder `place` is a file or cannot be written to, and for a URL that cannot be used."""
        self.counts: Counter[str] = Counter()
        self.folder: Path | None = None
        self._objects: WorkObjects | None = None
        self.place: Path | str | None = None
        if place is not None and is_url(str(place)):
            self._objects = WorkObjects(str(place))
            self.place = self._objects.url
        elif place is not None:
            self.folder = Path(place).expanduser()
            self._make_folder(self.folder)
            self.place = self.folder.absolute()

    @staticmethod
    def _make_folder(folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"the work folder {folder} cannot be made: {error.strerror}; name another one with --work"
            ) from error

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on this machine for temporary files: the work folder, else one of the system's that is removed."""
        if self.folder is not None:
            yield self.folder
            return
        with scratch_folder() as folder:
            yield folder

    def has(self, kind: str, key: str) -> bool:
        """Whether there is such a file; `read` checks its content."""
        if self._objects is not None:
            return self._objects.has(kind, _name(key))
        return self.folder is not None and self._path(kind, key).is_file()

    def read(self, kind: str, key: str, layout: Layout | None = None) -> dict[str, np.ndarray] | None:
        """The arrays of an entry; None where there is none.

        An entry that is damaged, was changed, or lacks the arrays of `layout` (see `check_layout`) is removed with a
        note.
        """
        if self.place is None:
            return None
        schema = f"{SCHEMA} {kind}"
        if self._objects is not None:
            if not self._objects.has(kind, _name(key)):
                return None
            read = partial(self._objects.read, kind, _name(key))
            arrays = cached_arrays(read, f"{self.place}/{kind}/{_name(key)}", schema, key, layout)
        else:
            arrays = read_cached(self._path(kind, key), schema, key, layout=layout)
        if arrays is None:
            self._remove(kind, key)
            return None
        self._count(f"{kind}, found")
        return arrays

    def write(self, kind: str, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes an entry. OSError (a full disk) passes; earlier entries stay."""
        self._count(kind)
        schema = f"{SCHEMA} {kind}"
        if self._objects is not None:
            self._objects.write(kind, _name(key), cache_bytes(schema, key, arrays))
        elif self.folder is not None:
            path = self._path(kind, key)
            if path.is_dir():
                raise UserError(f"{path} is a folder where the work folder keeps a file; remove it")
            write_cached(path, schema, key, arrays)

    def arrays(
        self,
        kind: str,
        key: Callable[[], str],
        make: Callable[[], Mapping[str, np.ndarray]],
        layout: Layout | None = None,
    ) -> Mapping[str, np.ndarray]:
        """The entry `key()` as `read` gives it; where there is none, what `make()` returns, which is then written."""
        if self.place is None:
            return make()
        name = key()
        arrays = self.read(kind, name, layout)
        if arrays is None:
            arrays = dict(make())
            self.write(kind, name, arrays)
        return arrays

    def sizes(self, kind: str) -> list[int]:
        """The bytes of each entry of a kind."""
        if self._objects is not None:
            return list(self._objects.sizes(kind).values())
        if self.folder is None:
            return []
        return [path.stat().st_size for path in (self.folder / kind).glob("*/[!.]*.safetensors")]

    def _count(self, kind: str) -> None:
        with _COUNTING:
            self.counts[kind] += 1

    def _remove(self, kind: str, key: str) -> None:
        if self._objects is not None:
            self._objects.remove(kind, _name(key))
            return
        with contextlib.suppress(OSError):
            self._path(kind, key).unlink(missing_ok=True)

    def _path(self, kind: str, key: str) -> Path:
        assert self.folder is not None
        return self.folder / kind / _name(key)


def _name(key: str) -> str:
    """The file of an entry below its kind."""
    return f"{key[:2]}/{key}.safetensors"


def open_work(path: str | Path | None, parent: Path) -> tuple[WorkFolder, str]:
    """The work folder `path`, or that of a URL (UserError if it cannot be written); for None, "dune-work" in `parent`.
    Where `parent` is read-only nothing is kept, and the second value is a note on that."""
    if path is not None and is_url(str(path)):
        return WorkFolder(path), ""
    if path is not None:
        return WorkFolder(check_output_folder(path, overwrite=True)), ""
    try:
        return WorkFolder(check_output_folder(parent / NAME, overwrite=True)), ""
    except UserError as error:
        return WorkFolder(None), f"nothing is kept for the next run, name a --work folder ({error})"


def key_of(*parts: object) -> str:
    """The key of an entry, 32 hexadecimal digits: a hash of what it depends on (names, hashes, numbers) and of the
    version of dune."""
    text = json.dumps([__version__, *parts], ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
