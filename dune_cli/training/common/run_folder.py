"""The folder of a run: its settings and inputs, compared on resume; its log; the photos that could not be read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dune_cli import console
from dune_cli.errors import DuneError, UserError
from dune_cli.io.cache import append_line, read_lines
from dune_cli.io.json_files import Fields, write_json
from dune_cli.io.outputs import check_output_folder
from dune_cli.io.safe_read import read_json
from dune_cli.training.distill.config import DistillConfig, as_json, differences

CONFIG, LOG, BROKEN = "config.json", "log.jsonl", "broken.jsonl"
SCHEMA = "dune.distill-run/1"


class RunFolder:
    """`checkpoints/` and the files above, in the folder of `-o`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    def check(self, config: DistillConfig) -> None:
        """UserError for a folder that cannot be written to, or that holds a run of other settings."""
        check_output_folder(self.path, overwrite=True)
        begun = self.begun(SCHEMA, "a distillation")
        if begun is not None:
            changed = differences(begun.object("config").value, config)
            if changed:
                raise UserError(
                    f"{self.path} holds a run with other settings ({'; '.join(changed)}); use those, or another -o"
                )

    def begin(self, config: DistillConfig, photos: str, teachers: dict[str, str | None], first: bool) -> None:
        """Writes down the settings and what the run depends on, or compares the latter: UserError if it changed.

        photos: hash of their names. teachers: sha256 of each one's weights. Only the first rank writes.
        """
        begun = self.begun(SCHEMA, "a distillation")
        if begun is not None:
            inputs = begun.object("inputs")
            old = inputs.object("teachers")
            changed = [f"the weights of {n}" for n, sha in teachers.items() if old.get(n) != sha]
            changed += ["the photos of --data"] if inputs.text("photos") != photos else []
            if changed:
                raise UserError(
                    f"{self.path} holds a run with other inputs: {' and '.join(changed)} changed since; put them back, "
                    "or use another -o"
                )
        elif first:
            inputs = {"photos": photos, "teachers": teachers}
            write_json(self.path / CONFIG, {"schema": SCHEMA, "config": as_json(config), "inputs": inputs})

    def begun(self, schema: str, of: str) -> Fields | None:
        """What config.json says of the run, with "config" and "inputs"; None without one.

        UserError for a file that is not of `schema`; `of` says in the message what has it.
        """
        path = self.path / CONFIG
        if not path.exists():
            return None
        content = read_json(path, "the settings of a run")
        if not isinstance(content, dict) or content.get("schema") != schema:
            raise UserError(f"{path} is not of {of}; use another -o")
        fields = Fields(content, str(path))
        fields.object("config")
        fields.object("inputs")
        return fields

    def append_log(self, entry: dict[str, Any]) -> None:
        """One more entry of the log."""
        append_line(self.path / LOG, entry)

    def read_log(self) -> list[dict[str, Any]]:
        """The log, one entry a step: where a killed run logged a step twice, the later one.

        Every entry has a whole "step", "seconds" and other finite numbers. Damaged lines are left out with a note.
        """
        entries = {}
        for entry in self._lines(LOG, "they are left out of the log"):
            fields = Fields(entry, LOG)
            try:
                step = fields.integer("step", low=1)
                fields.number("seconds", low=0.0)
            except DuneError:
                continue
            entries[step] = {name: value for name, value in entry.items() if _is_number(value)}
        return [entries[step] for step in sorted(entries)]

    def append_broken(self, label: str, why: str) -> None:
        """One more photo that cannot be read."""
        append_line(self.path / BROKEN, {"photo": label, "why": why})

    def read_broken(self) -> dict[str, str]:
        """Photos that could not be read, by all ranks, before and after interruptions: label -> why.

        Damaged lines are left out with a note; their photos are tried again.
        """
        entries = self._lines(BROKEN, "their photos are read again")
        texts = [(entry.get("photo"), entry.get("why")) for entry in entries]
        return {photo: why for photo, why in texts if isinstance(photo, str) and isinstance(why, str)}

    def _lines(self, name: str, consequence: str) -> list[dict[str, Any]]:
        entries, damaged = read_lines(self.path / name, "the log of a run")
        if damaged:
            console.note(f"{self.path / name}: {damaged} damaged lines; {consequence}")
        return entries


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
