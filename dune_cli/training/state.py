"""Checkpoints of a run: whole or absent, the last good one kept. Written with torch.distributed.checkpoint."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from dune_cli.errors import JobFailed, UserError
from dune_cli.training.ranks import Ranks

KEEP = 2


class RunState:
    """Everything a run needs to go on: the student, its optimizer, the teachers' statistics, the step."""

    def __init__(self, student: nn.Module, optimizer: torch.optim.Optimizer, norms: nn.Module) -> None:
        self.student, self.optimizer, self.norms = student, optimizer, norms

    def _tree(self, step: int) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.student, self.optimizer)
        return {
            "model": model,
            "optimizer": optimizer,
            "norms": self.norms.state_dict(),
            "step": torch.tensor(step),
        }

    def save(self, folder: Path, step: int, ranks: Ranks) -> None:
        """Writes `folder/step-N`, renames it into place, removes all but the last two.

        JobFailed when it cannot be written (a full disk); earlier checkpoints stay as they were.
        """
        target = folder / f"step-{step:08d}"
        temporary = folder / f".step-{step:08d}.tmp"
        if target.exists():
            return
        try:
            if ranks.is_first:
                for leftover in folder.glob(".step-*.tmp"):  # of a killed run
                    shutil.rmtree(leftover, ignore_errors=True)
                temporary.mkdir(parents=True)
            ranks.wait()
            with _quietly():
                dcp.save(self._tree(step), checkpoint_id=temporary, no_dist=ranks.count == 1)
            ranks.wait()
            if ranks.is_first:
                temporary.rename(target)
        except (OSError, RuntimeError, dcp.api.CheckpointException) as error:
            reason = _why_not_written(folder, error)
            shutil.rmtree(temporary, ignore_errors=True)
            raise JobFailed(
                f"cannot write the checkpoint {target} ({reason}); the last good one is "
                f"{latest(folder) or 'none'}: free some space and run the same command again"
            ) from error
        if ranks.is_first:
            for old in complete(folder)[:-KEEP]:
                shutil.rmtree(old, ignore_errors=True)
        ranks.wait()

    def restore(self, path: Path, ranks: Ranks) -> int:
        """Loads `path` in place and returns its step. UserError for a damaged checkpoint."""
        tree = self._tree(0)
        try:
            with _quietly():
                dcp.load(tree, checkpoint_id=path, no_dist=ranks.count == 1)
        except (Exception, dcp.api.CheckpointException) as error:  # whatever a damaged file raises
            raise UserError(
                f"the checkpoint {path} cannot be read ({_reason(error)}); delete it to go on from the one before"
            ) from error
        set_state_dict(self.student, self.optimizer, model_state_dict=tree["model"], optim_state_dict=tree["optimizer"])
        self.norms.load_state_dict(tree["norms"])
        return int(tree["step"])


def complete(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8}", path.name))


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, if any."""
    return (complete(folder) or [None])[-1]


def _reason(error: BaseException) -> str:
    """The innermost message, in one short line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[-1].split())[:200] if lines else type(error).__name__


def _why_not_written(folder: Path, error: BaseException) -> str:
    """What the system says to another megabyte; torch hides it behind errors of its zip writer."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(1 << 20))
            probe.flush()
    except OSError as refusal:
        return (refusal.strerror or str(refusal)).lower()
    return _reason(error)


class _quietly(warnings.catch_warnings):
    """torch.distributed.checkpoint warns about single-process use; that is our normal case."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
