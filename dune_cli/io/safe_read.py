"""Reading of files that others wrote: text, JSON, NPZ and ZIP, within limits.

Only regular files are opened, so that a FIFO or a device never blocks a command. A file is no larger than a stated
limit and unpacks to no more than a stated limit. Whatever its bytes provoke in a decoder becomes one `DuneError` that
names the file.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import math
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dune_cli.errors import DuneError, UserError

if TYPE_CHECKING:
    import numpy as np


MIB = 1 << 20
TEXT_LIMIT_BYTES = 256 * MIB
LINES_LIMIT_BYTES = 64 * MIB  # of files that are split into lines: these take up to 25 times as much memory
JSON_LIMIT_BYTES = 128 * MIB
JSON_CONTAINERS = 4_000_000  # lists and objects: an empty one takes 64 bytes
ARRAYS_LIMIT_BYTES = 4096 * MIB
ZIP_MEMBERS = 200_000
JSON_DEPTH = 64
LARGEST_INTEGER = 2**63
_KINDS = "?biufcUS"  # NumPy's letters of dtypes: booleans, numbers, strings
MARKS = (  # byte order marks; UTF-32 first: its little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(data: bytes) -> str:
    """The text in `data`: UTF-8, or UTF-16 or UTF-32 with a byte order mark (Windows PowerShell's `>` writes one).
    UnicodeDecodeError for other encodings."""
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    return data.decode(encoding)


def forward_slashes(name: str) -> str:
    r"""A name with `/` between its parts: `cam1\a.jpg` gives `cam1/a.jpg`. Only for names that are not found as they
    are: on other systems than Windows a backslash may be part of a name."""
    return name.replace("\\", "/")


def shown(name: str, longest: int = 80) -> str:
    """A name from a file, for a message: quoted where it is not plain text, cut in the middle where it is long."""
    plain = name and name.isprintable() and name == name.strip()
    return _cut(name, longest) if plain else quoted(name, longest)


def quoted(name: str, longest: int = 80) -> str:
    """A name from a file, for a message: quoted and escaped, cut in the middle where it is long."""
    return _cut(repr(name), longest)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest // 2]}...{text[-longest // 2 + 3 :]}"


def file_in(folder: Path, name: str) -> Path:
    """The file `name` of a list in `folder`; where it does not exist and has backslashes, the name with slashes."""
    path = folder / name
    return path if "\\" not in name or path.exists() else folder / forward_slashes(name)


def is_file(path: str | Path) -> bool:
    """Whether `path` is a regular file; False for names that no file can have (from a JSON, for example)."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: str | Path) -> bool:
    """Whether `path` is a folder; False for names that no file can have."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def open_regular(
    path: str | Path, what: str, limit_bytes: int | None = None, error: type[DuneError] = UserError
) -> Iterator[IO[bytes]]:
    """The regular file at `path`, open for reading bytes.

    `what` names the kind of file in messages, such as "a pose file". Raises `error` where the file is missing, a
    folder, a FIFO, a device or a socket, not readable, or larger than `limit_bytes`. An OSError inside the block
    becomes `error` too.
    """
    path = Path(path)
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as caught:
        raise _unreadable(path, what, caught, error) from caught
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise error(f"{path} is a folder; {what} is needed")
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path} is not a regular file; save {what} to a file first")
        if limit_bytes is not None and status.st_size > limit_bytes:
            raise error(
                f"{path} has {_size(status.st_size)}; {what} of at most {_size(limit_bytes)} is read: check that it is "
                "the file you mean"
            )
    except BaseException:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb") as file:
        try:
            yield file
        except OSError as caught:
            raise _unreadable(path, what, caught, error) from caught


def read_bytes(
    path: str | Path, what: str, limit_bytes: int = TEXT_LIMIT_BYTES, error: type[DuneError] = UserError
) -> bytes:
    """The content of a regular file of at most `limit_bytes`. Raises `error` as `open_regular`."""
    with open_regular(path, what, limit_bytes, error) as file:
        size = os.fstat(file.fileno()).st_size  # read() asks for all the memory that it may need
        try:
            content = file.read(size + 1)
        except MemoryError as caught:
            raise error(f"{path} has {_size(size)}, for which there is not enough memory") from caught
    if len(content) > size:
        raise error(f"{path} is being written to; wait until it is whole")
    return content


def read_text(
    path: str | Path, what: str, limit_bytes: int = TEXT_LIMIT_BYTES, error: type[DuneError] = UserError
) -> str:
    """The text without its byte order mark: UTF-8, or UTF-16 or UTF-32 with one.

    Raises `error` as `open_regular`, and for other encodings.
    """
    content = read_bytes(path, what, limit_bytes, error)
    try:
        return decode_text(content)
    except UnicodeDecodeError as caught:
        raise error(f"{path} is not UTF-8 text (byte {caught.start}); {what} is needed") from caught


def read_json(
    path: str | Path, what: str = "a JSON file", limit_bytes: int = JSON_LIMIT_BYTES, error: type[DuneError] = UserError
) -> Any:
    """The value in a JSON file, as `parse_json`. Raises `error` as `read_text` and `parse_json`."""
    return parse_json(read_text(path, what, limit_bytes, error), str(path), error)


def parse_json(text: str | bytes, where: str, error: type[DuneError] = UserError) -> Any:
    """The value of a JSON text; `where` names the text in messages.

    Raises `error` for what is no JSON (RFC 8259), for NaN, infinities and numbers beyond float64 or 64-bit integers,
    for a key that an object has twice, for values nested deeper than 64 levels, and for more than 4 million of them.
    """
    openers = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    if sum(text.count(opener) for opener in openers) > JSON_CONTAINERS:  # type: ignore[arg-type]
        raise error(f"{where} holds more than {JSON_CONTAINERS} lists and objects, which is more than is read")
    try:
        value = json.loads(
            text,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_integer,
            object_pairs_hook=_without_duplicates,
        )
    except RecursionError as caught:
        raise error(f"{where} is nested too deeply; at most {JSON_DEPTH} levels are read") from caught
    except (ValueError, MemoryError) as caught:
        raise error(f"{where} is not a JSON file: {str(caught) or 'too large for the memory'}") from caught
    level = [value]
    for _ in range(JSON_DEPTH + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return value
    raise error(f"{where} is nested too deeply; at most {JSON_DEPTH} levels are read")


@contextlib.contextmanager
def open_zip(
    path: str | Path,
    what: str,
    limit_bytes: int = ARRAYS_LIMIT_BYTES,
    unpacked_limit_bytes: int = ARRAYS_LIMIT_BYTES,
    error: type[DuneError] = UserError,
) -> Iterator[zipfile.ZipFile]:
    """A ZIP archive whose members unpack to at most `unpacked_limit_bytes` together.

    Raises `error` as `open_regular`, for what is no ZIP archive or a damaged one, and for whatever damaged bytes
    provoke inside the block (a `DuneError` passes as it is).
    """
    with open_regular(path, what, limit_bytes, error) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                unpacked = sum(member.file_size for member in members)
                if len(members) > ZIP_MEMBERS:
                    raise error(f"{path} holds {len(members)} files; {what} has at most {ZIP_MEMBERS}")
                if unpacked > unpacked_limit_bytes:
                    raise error(
                        f"{path} unpacks to {_size(unpacked)}; {what} of at most {_size(unpacked_limit_bytes)} is read"
                    )
                yield archive
        except DuneError:
            raise
        except zipfile.BadZipFile as caught:
            raise error(f"{path} {_no_zip(file, caught)}; {what} is needed") from caught
        except Exception as caught:  # zipfile, zlib, lzma and their callers raise whatever damaged bytes call for
            raise error(f"{path} is damaged or not {what} ({_reason(caught)})") from caught


def read_member(archive: zipfile.ZipFile, name: str, limit_bytes: int, error: type[DuneError] = UserError) -> bytes:
    """The unpacked content of a member. Raises `error` if it is larger than `limit_bytes`, KeyError if absent."""
    with archive.open(name) as member:
        content = member.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise error(f"{archive.filename or 'the archive'}: {name} unpacks to more than {_size(limit_bytes)}")
    return content


def read_npz(
    path: str | Path,
    what: str,
    names: Sequence[str] | None = None,
    limit_bytes: int = ARRAYS_LIMIT_BYTES,
    error: type[DuneError] = UserError,
) -> dict[str, np.ndarray]:
    """The arrays `names` of an NPZ file, or all. The others are not touched.

    `limit_bytes` bounds the file and what all of its members unpack to. Arrays are C-ordered and writeable, of
    booleans, numbers or fixed-length strings; nothing is unpickled. Raises `error` as `open_zip`, for a missing name,
    for arrays of other types, and for arrays whose shape does not fit their bytes.
    """
    arrays = {}
    with open_zip(path, what, limit_bytes, limit_bytes, error) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
        lacking = [name for name in names or () if name not in members]
        if lacking:
            raise error(f"{path} is not {what}: it lacks {', '.join(lacking)}")
        for name in members if names is None else names:
            arrays[name] = _read_npy(archive, members[name], f"{path}: the array {name}", error)
    return arrays


def _read_npy(archive: zipfile.ZipFile, member: str, where: str, error: type[DuneError]) -> np.ndarray:
    """One array; its header must fit its bytes before memory is asked for (NumPy's own reader asks first)."""
    import numpy as np

    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise error(f"{where} has the NPY version {version[0]}.{version[1]}; 1.0 and 2.0 are read")
        if dtype.kind not in _KINDS:
            raise error(f"{where} has the type {dtype}; numbers, booleans and strings are read")
        if any(side < 0 for side in shape):
            raise error(f"{where} has the shape {shape}")
        count = math.prod(shape)
        left = archive.getinfo(member).file_size - file.tell()
        if count * dtype.itemsize != left:
            raise error(f"{where} is {_size(max(left, 0))} long; its shape {shape} of {dtype} needs {count} values")
        content = bytearray(left)
        _fill(content, file)
    if dtype.itemsize == 0:
        return np.zeros(shape, dtype)
    flat = np.frombuffer(content, dtype)
    if dtype.kind == "U" and int(flat.view(dtype.str[0] + "u4").max(initial=0)) > 0x10FFFF:
        raise error(f"{where} holds characters that Unicode does not have")
    return flat.reshape(shape[::-1]).transpose().copy(order="C") if fortran else flat.reshape(shape)


def _fill(content: bytearray, file: IO[bytes]) -> None:
    """Reads as much as `content` holds, and that the file ends there; a ZIP's checksum is compared at the end."""
    at = 0
    while piece := file.read(MIB):
        if at + len(piece) > len(content):
            raise ValueError("it is longer than its header says")
        content[at : at + len(piece)] = piece
        at += len(piece)
    if at < len(content):
        raise EOFError("it is shorter than its header says")


def _no_zip(file: IO[bytes], caught: zipfile.BadZipFile) -> str:
    file.seek(0)
    head = file.read(4)
    if not head:
        return "is empty (0 bytes)"
    if head != b"PK\x03\x04":
        return "is no ZIP archive"
    if "not a zip" in str(caught):
        return "is cut short: its table of contents, at the end, is missing"
    return f"is damaged ({_reason(caught)})"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"it has the key {twice[:100]!r} twice")
    return table


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or abs(value := int(text)) >= LARGEST_INTEGER:
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _unreadable(path: Path, what: str, caught: OSError | ValueError, error: type[DuneError]) -> DuneError:
    if isinstance(caught, FileNotFoundError):
        return error(f"no such file: {path}; {what} is needed")
    return error(f"cannot read {path}: {getattr(caught, 'strerror', None) or caught}")


def _reason(caught: Exception) -> str:
    lines = str(caught).strip().splitlines()
    return f"{type(caught).__name__}: {lines[0][:120]}" if lines else type(caught).__name__


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count} bytes"
