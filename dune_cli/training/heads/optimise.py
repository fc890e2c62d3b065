"""The steps of a head's run: AdamW on a loss, averaged weights, the best of them by held-out loss, early stopping."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from dune_cli import console
from dune_cli.training.common.checkpoints import RunState
from dune_cli.training.common.dist import Dist
from dune_cli.training.common.loop import TrainingLoop, check_finite, set_learning_rate
from dune_cli.training.common.run_folder import RunFolder

WARMUP = 0.05
CLIP = 1.0


class Schedule(Protocol):
    """What the settings of a head's run have: see `HeadTrainingConfig`."""

    steps: int
    learning_rate: float
    average: float
    evaluate_every: int
    patience: int


@dataclass(frozen=True)
class Optimisation:
    """What the steps belong to. name: on the progress bar. config: a TrainingConfig with a `Schedule`."""

    name: str
    config: Any
    folder: RunFolder
    dist: Dist


class BestWeights(nn.Module):
    """The averaged weights of the best evaluation so far, its step and loss, and the evaluations since."""

    step: torch.Tensor
    loss: torch.Tensor
    since: torch.Tensor

    def __init__(self, average: nn.Module) -> None:
        super().__init__()
        self.trainee = copy.deepcopy(average)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("loss", torch.full((), math.inf, dtype=torch.float64))
        self.register_buffer("since", torch.zeros((), dtype=torch.int64))

    def update(self, average: nn.Module, step: int, loss: float) -> None:
        """Takes the weights if `loss` is the lowest so far."""
        if loss < float(self.loss):
            self.trainee.load_state_dict(average.state_dict())
            self.step.fill_(step)
            self.loss.fill_(loss)
            self.since.zero_()
        else:
            self.since += 1


def optimise(
    run: Optimisation,
    trainee: nn.Module,
    groups: list[dict[str, Any]],
    step_loss: Callable[[int], torch.Tensor],
    score: Callable[[nn.Module], dict[str, float]],
) -> tuple[BestWeights, float]:
    """The best averaged weights, and the seconds of this call. Goes on from the folder's last checkpoint.

    groups: AdamW's. step_loss: the loss of a step, counted from 0. score: numbers for the log from the averaged
    weights; "validation" is the one to lower. JobFailed where a loss is not finite.
    """
    config, folder, dist = run.config, run.folder, run.dist
    schedule: Schedule = config
    average = copy.deepcopy(trainee).requires_grad_(False)
    best = BestWeights(average)
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    state = RunState(trainee, optimizer, {"average": average, "best": best})
    loop = TrainingLoop(run.name, folder, config, state, dist)
    for step in loop.steps():
        if int(best.since) >= schedule.patience:
            break
        set_learning_rate(optimizer, step, schedule.steps, schedule.learning_rate, warmup_fraction=WARMUP)
        trainee.train()
        loss = step_loss(step)
        loss.backward()
        trained = [parameter for parameter in trainee.parameters() if parameter.requires_grad]
        for parameter in trained:  # checkpoints want a gradient of all
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        check_finite([float(norm)], step + 1)
        update_average(average, trainee, min(schedule.average, (step + 1) / (step + 10)))

        numbers = {"loss": float(loss.detach()), "gradient": float(norm)}
        if (step + 1) % schedule.evaluate_every == 0 or step + 1 == schedule.steps:
            numbers |= (scores := score(average))
            best.update(average, step + 1, scores["validation"])
        loop.end_step(step, lambda rate, numbers=numbers: numbers)
        if int(best.since) >= schedule.patience:
            state.save(folder.checkpoints, step + 1, dist)
            console.note(f"stopped at step {step + 1}: no better validation loss since step {int(best.step)}")
    return best, loop.seconds


@torch.no_grad()
def update_average(average: nn.Module, trainee: nn.Module, decay: float) -> None:
    """average = decay · average + (1 - decay) · trained, of every floating-point value."""
    for mine, theirs in zip(average.state_dict().values(), trainee.state_dict().values()):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1 - decay)
        else:
            mine.copy_(theirs)
