"""What the loops of all trainings share: learning rate, resume, log lines, interval checkpoints, progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from dune_cli import console, runtime
from dune_cli.errors import JobFailed, UserError
from dune_cli.training.common.checkpoints import RunState, latest_checkpoint
from dune_cli.training.common.config import TrainingConfig
from dune_cli.training.common.dist import Dist
from dune_cli.training.common.run_folder import RunFolder, TensorBoard


class TrainingLoop:
    """The steps of a run, from its last checkpoint on. Call `end_step` at the end of each step.

    Restores `state` from the newest checkpoint of `folder`, if there is one. name: of the progress bar.
    """

    def __init__(
        self,
        name: str,
        folder: RunFolder,
        config: TrainingConfig,
        state: RunState,
        dist: Dist,
        board: TensorBoard | None = None,
    ) -> None:
        self.folder, self.config, self.state, self.dist = folder, config, state, dist
        self._name, self._board = name, board
        newest = latest_checkpoint(folder.checkpoints)
        self.resumed = newest is not None
        self.first_step = state.restore(newest, dist) if newest else 0
        if newest and dist.is_main:
            console.note(f"resuming from {newest.name}, {config.steps - self.first_step} steps left")
        self._started = self._now = self._saved = time.monotonic()

    def steps(self) -> Iterator[int]:
        """The steps that are left to do; the clock starts with the first."""
        log = self.folder.read_log()
        self._seconds_before = max((e["seconds"] for e in log if e["step"] <= self.first_step), default=0.0)
        self._bar = console.bar(self.config.steps - self.first_step, self._name, "step") if self.dist.is_main else None
        self._started = self._now = self._saved = time.monotonic()
        yield from range(self.first_step, self.config.steps)
        if self._bar is not None:
            self._bar.close()

    @property
    def seconds(self) -> float:
        """Seconds that the steps of this call have taken."""
        return time.monotonic() - self._started

    @property
    def rate(self) -> float:
        """Steps a second on the progress bar."""
        return 0.0 if self._bar is None else self._bar.rate

    def end_step(
        self,
        step: int,
        numbers: Callable[[float], dict[str, float]],
        shown: Callable[[], str] | None = None,
    ) -> None:
        """Writes a log entry every `log_every` steps, a checkpoint every `checkpoint_minutes`, both after the last.

        numbers: given the steps a second so far, makes the entry's numbers; called on all processes when a log entry is
        due. shown: text behind the progress bar. JobFailed when a number is not finite or a checkpoint cannot be
        written.
        """
        done = step + 1
        self._now = time.monotonic()
        is_last = done == self.config.steps
        saves = self.dist.any(is_last or self._now - self._saved >= 60 * self.config.checkpoint_minutes)
        if saves or done % self.config.log_every == 0:
            elapsed = self._now - self._started
            entry = {"step": done, "lr": self.state.optimizer.param_groups[0]["lr"]}
            entry |= numbers((done - self.first_step) / elapsed)
            check_finite(entry.values(), done)
            entry["seconds"] = round(self._seconds_before + elapsed, 3)
            if self.dist.is_main:
                self.folder.append_log(entry)
            if self._board is not None:
                self._board.add(entry)
        if saves:
            self.state.save(self.folder.checkpoints, done, self.dist)
            self._saved = time.monotonic()
        if self._bar is not None:
            self._bar.update(1, shown)


def check_finite(values: Iterable[float], step: int) -> None:
    """JobFailed unless all numbers of a step, counted from 1, are finite."""
    if not all(math.isfinite(value) for value in values):
        raise JobFailed(f"the loss is not finite at step {step}; try a lower --lr, or --dtype float32")


def learning_rate(step: int, steps: int, peak: float, final: float = 1e-6, warmup_fraction: float = 0.2) -> float:
    """Linear from 0 over the first `warmup_fraction` of the steps, then a cosine from `peak` to `final`."""
    warmup = int(warmup_fraction * steps)
    if step < warmup:
        return peak * step / warmup
    return cosine(peak, final, step - warmup, steps - warmup)


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at the last step."""
    progress = min(step / max(steps - 1, 1), 1.0)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))


def set_learning_rate(
    optimizer: torch.optim.Optimizer,
    step: int,
    steps: int,
    peak: float,
    final: float = 1e-6,
    warmup_fraction: float = 0.2,
) -> None:
    """Sets `learning_rate` for a step; a parameter group's "lr_scale" (default 1) multiplies its peak."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, steps, peak * group.get("lr_scale", 1.0), final, warmup_fraction)


def weight_decay_groups(model: nn.Module, decay: float) -> list[dict[str, object]]:
    """AdamW's parameter groups: no decay on biases and other parameters of one dimension."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def training_dtype(name: str, device: torch.device) -> torch.dtype:
    """The autocast type of `--dtype`: float32 or bfloat16. UserError for float16, which would need a loss scale."""
    dtype = runtime.pick_dtype(name, device)
    if dtype == torch.float16 and name == "auto":
        return torch.float32
    if dtype == torch.float16:
        raise UserError("--dtype float16 is too narrow for training; allowed: auto, float32, bfloat16")
    return dtype


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to `dtype`; none for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of a step's random numbers."""
    return ((seed * 1_000_003 + step) * 1_009 + rank) % 2**63
