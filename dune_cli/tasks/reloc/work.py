"""A folder for what was computed for a map, so that it is computed once. Its files are named by their content's key."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dune_cli.errors import UserError
from dune_cli.io.atomic import check_output_folder
from dune_cli.io.npz import write_npz

NAME = "dune-work"


@dataclass(frozen=True)
class WorkFolder:
    """`folder` None: nothing is kept."""

    folder: Path | None

    def arrays(
        self, name_of: Callable[[], str], make: Callable[[], Mapping[str, np.ndarray]]
    ) -> Mapping[str, np.ndarray]:
        """The arrays of file `name_of()`; those of `make`, then kept, where it is missing or damaged."""
        if self.folder is None:
            return make()
        name = name_of()
        found = self.load(name)
        if found is None:
            found = dict(make())
            self.save(name, found)
        return found

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """What is in file `name`; None where it is missing or damaged."""
        if self.folder is None or not (self.folder / name).is_file():
            return None
        try:
            with np.load(self.folder / name, allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None

    def save(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps `arrays` as file `name`."""
        if self.folder is not None:
            write_npz(self.folder / name, **arrays)


def open_work(asked: str | Path | None, beside: Path) -> tuple[WorkFolder, str]:
    """The folder that was `asked` for (UserError if it cannot be written), else the one in `beside`; where that is
    read-only none, and the second value says so."""
    if asked is not None:
        return WorkFolder(check_output_folder(asked, overwrite=True)), ""
    try:
        return WorkFolder(check_output_folder(beside / NAME, overwrite=True)), ""
    except UserError as error:
        return WorkFolder(None), f"nothing is kept for the next run, name a --work folder ({error})"
