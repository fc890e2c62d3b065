"""The state of a run in checkpoints: whole or absent, the last good ones kept."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dune_cli.errors import JobFailed, UserError
from dune_cli.training import checkpoints
from dune_cli.training.ranks import Ranks

KEEP = 2
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, of a parameter's shape
STEPS = "step"  # AdamW's own count, a number


class RunState:
    """Everything a run needs to go on: the student, its optimizer (AdamW), the teachers' statistics, the step.

    Random numbers and learning rates need no place: both follow from the settings and the step.
    """

    def __init__(self, student: nn.Module, optimizer: torch.optim.Optimizer, norms: nn.Module) -> None:
        self.student = student.module if isinstance(student, DistributedDataParallel) else student
        self.optimizer, self.norms = optimizer, norms

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
            tensors = self._networks()
            for name, parameter in self._trained():
                moments = self.optimizer.state.get(parameter, {})
                tensors |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
            checkpoints.write(temporary, step, tensors, ranks)
            if ranks.is_first:
                temporary.rename(target)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = (error.strerror or str(error)).lower()
            raise JobFailed(
                f"cannot write the checkpoint {target} ({reason}); the last good one is "
                f"{latest(folder) or 'none'}: free some space and run the same command again"
            ) from error
        if ranks.is_first:
            for old in complete(folder)[:-KEEP]:
                shutil.rmtree(old, ignore_errors=True)
        ranks.wait()

    def restore(self, path: Path, ranks: Ranks) -> int:
        """Loads `path` in place and returns its step, whatever number of processes wrote it.

        UserError for a damaged checkpoint, and for one that an earlier version wrote.
        """
        try:
            index = checkpoints.read_index(path)
            if f"step-{index.step:08d}" != path.name:
                raise checkpoints.DamagedError(f"it is of step {index.step}")
            checkpoints.check_files(path, index, ranks)
            moments = self._moments(index)
            wanted = self._networks()
            for name, values in moments.items():
                wanted |= {f"optimizer.{name}.{key}": value for key, value in values.items()}
            if unknown := sorted(index.tensors.keys() - wanted.keys()):
                raise checkpoints.DamagedError(f"it holds {unknown[0][:80]}, which this run does not have")
            checkpoints.read(path, index, wanted)
        except checkpoints.EarlierFormatError as error:
            raise UserError(
                f"the checkpoint {path} was written by an earlier version of dune, as a pickle, which is no longer "
                "read; finish the run with that version, or start it again with another -o (a finished student or "
                "matcher of that run is taken by --init)"
            ) from error
        except checkpoints.DamagedError as error:
            raise UserError(
                f"the checkpoint {path} cannot be read ({error}); delete it to go on from the one before"
            ) from error
        places = {name: place for place, (name, _) in enumerate(self._trained())}
        state = {places[name]: values for name, values in moments.items()}
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        return index.step

    def _networks(self) -> dict[str, torch.Tensor]:
        tensors = {f"model.{name}": value for name, value in self.student.state_dict().items()}
        return tensors | {f"norms.{name}": value for name, value in self.norms.state_dict().items()}

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        """The optimizer's parameters in its order, by name."""
        names = {id(parameter): name for name, parameter in self.student.named_parameters()}
        return [(names[id(p)], p) for group in self.optimizer.param_groups for p in group["params"]]

    def _moments(self, index: checkpoints.Index) -> dict[str, dict[str, torch.Tensor]]:
        """Room for the optimizer's state of those parameters that have one in the checkpoint."""
        room = {}
        for name, parameter in self._trained():
            if any(f"optimizer.{name}.{key}" in index.tensors for key in (*MOMENTS, STEPS)):
                values = {key: torch.zeros_like(parameter, requires_grad=False) for key in MOMENTS}
                room[name] = {STEPS: torch.zeros((), dtype=torch.float32), **values}
        return room


def complete(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8}", path.name))


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, if any."""
    return (complete(folder) or [None])[-1]
