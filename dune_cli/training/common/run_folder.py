"""The folder of a run: settings and inputs, compared on resume; the log; the list of photos that cannot be read.

config.json    the settings, and hashes of what the run depends on
log.jsonl      an entry a logged step
broken.jsonl   an entry a photo that cannot be read
checkpoints/   see checkpoints.py
tensorboard/   with --logger tensorboard
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dune_cli import console, optional
from dune_cli.errors import DuneError, UserError
from dune_cli.io.cache import append_line, read_lines
from dune_cli.io.json_files import Fields, write_json
from dune_cli.io.outputs import check_output_folder
from dune_cli.io.safe_read import read_json
from dune_cli.training.common.config import TrainingConfig

CONFIG, LOG, BROKEN = "config.json", "log.jsonl", "broken.jsonl"
LOGGERS = ("tensorboard",)


class RunFolder:
    """The folder of `-o`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    def check(self, config: TrainingConfig) -> Fields | None:
        """The inputs that an earlier call recorded; None for a new run.

        Raises UserError when the folder cannot be written to, or holds another training or other settings.
        """
        check_output_folder(self.path, overwrite=True)
        return self._recorded_inputs(config)

    def _recorded_inputs(self, config: TrainingConfig) -> Fields | None:
        path = self.path / CONFIG
        if not path.exists():
            return None
        content = read_json(path, "the settings of a run")
        if not isinstance(content, dict) or content.get("schema") != config.SCHEMA:
            raise UserError(f"{path} is not of {config.KIND}; use another -o")
        recorded = Fields(content, str(path))
        changed = config.changes_from(recorded.object("config").value)
        if changed:
            raise UserError(
                f"{self.path} holds a run with other settings ({'; '.join(changed)}); use those, or another -o"
            )
        return recorded.object("inputs")

    def begin(self, config: TrainingConfig, inputs: Mapping[str, Any], is_main: bool = True) -> None:
        """Records the settings and the inputs of a new run (`is_main`: by this process), or compares the inputs.

        Raises UserError when an input differs from the recorded one.
        """
        recorded = self._recorded_inputs(config)
        if recorded is not None:
            changed = _changed_inputs(config, recorded, inputs)
            if changed:
                raise UserError(
                    f"{self.path} holds a run with other inputs: {' and '.join(changed)} changed since; put them back, "
                    "or use another -o"
                )
        elif is_main:
            content = {"schema": config.SCHEMA, "config": config.as_json(), "inputs": inputs}
            write_json(self.path / CONFIG, content)

    def append_log(self, entry: dict[str, Any]) -> None:
        """Adds an entry to the log."""
        append_line(self.path / LOG, entry)

    def read_log(self) -> list[dict[str, Any]]:
        """The log, one entry a step: where a killed run logged a step twice, the later one.

        Every entry has an integer "step", "seconds", and other finite numbers. Damaged lines are skipped with a note.
        """
        entries = {}
        for entry in self._read_lines(LOG, "they are left out of the log"):
            fields = Fields(entry, LOG)
            try:
                step = fields.integer("step", low=1)
                fields.number("seconds", low=0.0)
            except DuneError:
                continue
            entries[step] = {name: value for name, value in entry.items() if _is_number(value)}
        return [entries[step] for step in sorted(entries)]

    def append_broken(self, label: str, reason: str) -> None:
        """Records a photo that cannot be read."""
        append_line(self.path / BROKEN, {"photo": label, "why": reason})

    def read_broken(self) -> dict[str, str]:
        """Photos that could not be read, by all processes and earlier calls: label -> reason.

        Damaged lines are skipped with a note; their photos are read again.
        """
        entries = self._read_lines(BROKEN, "their photos are read again")
        texts = [(entry.get("photo"), entry.get("why")) for entry in entries]
        return {photo: why for photo, why in texts if isinstance(photo, str) and isinstance(why, str)}

    def _read_lines(self, name: str, consequence: str) -> list[dict[str, Any]]:
        entries, damaged = read_lines(self.path / name, "the log of a run")
        if damaged:
            console.note(f"{self.path / name}: {damaged} damaged lines; {consequence}")
        return entries


class TensorBoard:
    """Writes every number of the log as a scalar to `folder`/tensorboard. PackageMissing without the package."""

    def __init__(self, folder: Path) -> None:
        optional.require("tensorboard", "--logger tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def add(self, entry: dict[str, Any]) -> None:
        """Adds an entry of the log."""
        for name, value in entry.items():
            if name != "step":
                self._writer.add_scalar(name, value, entry["step"])
        self._writer.flush()


def _changed_inputs(config: TrainingConfig, recorded: Fields, inputs: Mapping[str, Any]) -> list[str]:
    changed = []
    for name, words in config.INPUTS.items():
        if isinstance(inputs[name], Mapping):
            parts = recorded.object(name)
            changed += [words.format(part) for part, value in inputs[name].items() if parts.get(part) != value]
        elif recorded.get(name) != inputs[name]:
            changed.append(words)
    return changed


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
