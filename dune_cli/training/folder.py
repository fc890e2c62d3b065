"""The folder of a run: its settings and inputs, compared on resume; its log; the photos that could not be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dune_cli.errors import UserError
from dune_cli.io.atomic import check_output_folder
from dune_cli.io.jsons import write_json
from dune_cli.io.safe_read import read_json
from dune_cli.training.config import DistillConfig, as_json, differences

CONFIG, LOG, BROKEN = "config.json", "log.jsonl", "broken.jsonl"


class RunFolder:
    """`checkpoints/` and the files above, in the folder of `-o`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    def check(self, config: DistillConfig) -> None:
        """UserError for a folder that cannot be written to, or that holds a run of other settings."""
        check_output_folder(self.path, overwrite=True)
        if (self.path / CONFIG).exists():
            changed = differences(self._begun()["config"], config)
            if changed:
                raise UserError(
                    f"{self.path} holds a run with other settings ({'; '.join(changed)}); use those, or another -o"
                )

    def begin(self, config: DistillConfig, photos: str, teachers: dict[str, str | None], first: bool) -> None:
        """Writes down the settings and what the run depends on, or compares the latter: UserError if it changed.

        photos: hash of their names. teachers: sha256 of each one's weights. Only the first rank writes.
        """
        inputs = {"photos": photos, "teachers": teachers}
        path = self.path / CONFIG
        if path.exists():
            old = self._begun()["inputs"]
            changed = [f"the weights of {n}" for n, sha in teachers.items() if old["teachers"].get(n) != sha]
            changed += ["the photos of --data"] if old["photos"] != photos else []
            if changed:
                raise UserError(
                    f"{self.path} holds a run with other inputs: {' and '.join(changed)} changed since; put them back, "
                    "or use another -o"
                )
        elif first:
            write_json(path, {"schema": "dune.distill-run/1", "config": as_json(config), "inputs": inputs})

    def _begun(self) -> dict[str, Any]:
        content = read_json(self.path / CONFIG)
        if not isinstance(content, dict) or not {"config", "inputs"} <= set(content):
            raise UserError(f"{self.path / CONFIG} is not of a distillation; use another -o")
        return content

    def append_log(self, entry: dict[str, Any]) -> None:
        """One more entry of the log."""
        _append(self.path / LOG, entry)

    def read_log(self) -> list[dict[str, Any]]:
        """The log, one entry a step: where a killed run logged a step twice, the later one."""
        entries = {entry["step"]: entry for entry in _lines(self.path / LOG)}
        return [entries[step] for step in sorted(entries)]

    def append_broken(self, label: str, why: str) -> None:
        """One more photo that cannot be read."""
        _append(self.path / BROKEN, {"photo": label, "why": why})

    def read_broken(self) -> dict[str, str]:
        """Photos that could not be read, by all ranks, before and after interruptions: label -> why."""
        return {entry["photo"]: entry["why"] for entry in _lines(self.path / BROKEN)}


def _append(path: Path, entry: dict[str, Any]) -> None:
    """A line at the end of a file; begins a new one after a line that a kill cut off."""
    with path.open("a+b") as file:
        size = file.tell()
        if size:
            file.seek(size - 1)
        cut_off = size > 0 and file.read(1) != b"\n"
        file.write((b"\n" if cut_off else b"") + json.dumps(entry).encode() + b"\n")


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # cut off by a kill
            continue
    return found
