"""Folders of files that were written together, with a JSON list of their hashes, so that a later run can tell whether
all are there as they were."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from dune_cli.errors import UserError
from dune_cli.io.cache import note_damaged
from dune_cli.io.json_files import Fields, write_json
from dune_cli.io.safe_read import read_bytes, read_json


def write_list(folder: Path, name: str, schema: str) -> None:
    """Writes the list `name` of all files in a folder and its subfolders."""
    hashes = {file: _sha256(folder / file) for file in _files(folder, name)}
    write_json(folder / name, {"schema": schema, "sha256": hashes})


def is_whole(folder: Path, name: str, schema: str) -> bool:
    """Whether a folder holds the files of its list `name`, and no others; if not, it is removed, with a note."""
    if not folder.exists():
        return False
    try:
        fields = Fields(read_json(folder / name), str(folder / name))
        hashes = fields.object("sha256")
        if fields.text("schema") != schema or set(hashes) != set(_files(folder, name)):
            raise UserError("its files are not those of its list")
        for file in hashes:
            if _sha256(folder / file) != hashes.text(file):
                raise UserError(f"{file} was changed")
    except UserError as error:
        note_damaged(folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


def _files(folder: Path, name: str) -> list[str]:
    """The files by their names from the folder on, without the list."""
    found = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())
    return sorted(file for file in found if file != name)


def _sha256(file: Path) -> str:
    return hashlib.sha256(read_bytes(file, "a kept picture")).hexdigest()
