"""JSON Lines kept between runs: every line carries a checksum, so that one which was cut off or damaged is never used.

`seal` and `unseal` do the same for one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dune_cli.errors import DuneError, UserError
from dune_cli.io.jsons import json_line
from dune_cli.io.safe_read import MIB, open_regular, parse_json

CHECK = "check"
LINES_LIMIT_BYTES = 2048 * MIB
LINE_LIMIT_BYTES = MIB


def seal(entry: Mapping[str, Any], made_of: str = "") -> dict[str, Any]:
    """`entry` as plain JSON values with a checksum of them and of `made_of`, what they depend on, in "check"."""
    plain = json.loads(json_line(entry))
    plain.pop(CHECK, None)
    return plain | {CHECK: _checksum(plain, made_of)}


def unseal(value: Any, made_of: str = "") -> dict[str, Any] | None:
    """The entry that `seal` sealed with the same `made_of`; None for anything else."""
    if not isinstance(value, dict) or not isinstance(value.get(CHECK), str):
        return None
    plain = {name: item for name, item in value.items() if name != CHECK}
    return plain if _checksum(plain, made_of) == value[CHECK] else None


def append_line(path: str | Path, entry: Mapping[str, Any], made_of: str = "") -> None:
    """One more line at the end of a file, sealed; begins a new line after one that a kill cut off.

    UserError where `path` is a folder, a FIFO or a device. OSError (a full disk) passes.
    """
    line = json.dumps(seal(entry, made_of)).encode() + b"\n"
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


def read_lines(path: str | Path, what: str, made_of: str = "") -> tuple[list[dict[str, Any]], int]:
    """The whole entries of a file that `append_line` wrote with the same `made_of`, in order, and how many lines of it
    are damaged or of something else. A last line without its end, which a kill leaves, is passed over.

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
            entry = _entry(line, made_of)
            if entry is None:
                damaged += 1
            else:
                entries.append(entry)
    return entries, damaged


def _entry(line: bytes, made_of: str) -> dict[str, Any] | None:
    try:
        return unseal(parse_json(line, "a line"), made_of)
    except (DuneError, UnicodeDecodeError):
        return None


def _checksum(plain: Mapping[str, Any], made_of: str) -> str:
    text = json.dumps([made_of, plain], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
