"""What lies around a weight file and may say what it holds: its names, and the config.json beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dune_cli.errors import CheckpointError
from dune_cli.io.safe_read import MIB, read_json

CONFIG = "config.json"  # as the Hugging Face hub lays it beside model.safetensors
CONFIG_LIMIT_BYTES = 1 * MIB


@dataclass(frozen=True)
class Surroundings:
    """`names`: of the registry, of the file, of its folders; the nearest first. `folder`: that of the file."""

    names: tuple[str, ...] = ()
    folder: Path | None = None

    def config(self) -> Mapping[str, Any] | None:
        """The content of config.json; None where there is none. CheckpointError where it is no JSON object."""
        path = None if self.folder is None else self.folder / CONFIG
        if path is None or not path.is_file():
            return None
        content = read_json(path, CONFIG, CONFIG_LIMIT_BYTES, CheckpointError)
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{path} is no JSON object; fetch it again, or remove it")
        return content


UNKNOWN = Surroundings()  # of a checkpoint that is in no file
