"""Reads the names a pickle asks for without loading it: for the sentence that refuses a hostile file."""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path
from typing import IO

_STRINGS = {"UNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"}
_LEGACY_PICKLES = 5  # magic number, protocol, machine, the object, storage keys (torch/serialization.py, _legacy_save)


def names_in(path: Path, legacy: bool) -> tuple[int, list[str]]:
    """The highest pickle protocol and the sorted `module.name` globals of a PyTorch file (zip or legacy).

    A damaged pickle gives what comes before the damage. A name from the pickle's memo is read as the latest string.
    """
    if legacy:
        with path.open("rb") as file:
            return _scan(file, _LEGACY_PICKLES)
    with zipfile.ZipFile(path) as archive:
        member = next(name for name in archive.namelist() if Path(name).name == "data.pkl")
        return _scan(io.BytesIO(archive.read(member)), 1)


def _scan(file: IO[bytes], pickles: int) -> tuple[int, list[str]]:
    protocol, names, strings = 0, set(), ["?", "?"]
    try:
        for _ in range(pickles):
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "PROTO":
                    protocol = max(protocol, argument)
                elif opcode.name in ("GLOBAL", "INST"):
                    names.add(argument.replace(" ", ".", 1))
                elif opcode.name == "STACK_GLOBAL":
                    names.add(".".join(strings[-2:]))
                elif opcode.name in _STRINGS:
                    strings = [strings[-1], str(argument)]
    except (ValueError, UnicodeDecodeError):
        pass  # damage ends the list; the caller reports the file as refused or damaged either way
    return protocol, sorted(names)
