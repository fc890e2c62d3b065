"""The settings of a distillation: one frozen dataclass, written beside the checkpoints and compared on resume."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from dune_cli.errors import UserError
from dune_cli.io.safe_read import shown
from dune_cli.training.common.loggers import LOGGERS

NORMS = ("mean-std", "phi-s")
STUDENTS = ("dune-vits14", "dune-vitb14", "dune-mini", "dune-mini:STEM", "vit:WIDTHxDEPTH", "timm:MODEL")
PROJECTORS = ("tp", "sp", "lp")
STRATEGIES = ("none", "lowest_loss", "own_data", "own+generic_data")
TOLD = 4  # settings in a message
# what may change between the runs of one training: the result is the same, with fsdp numerically close
FREE = ("checkpoint_minutes", "workers", "device", "log_every", "logger", "fsdp")


@dataclass(frozen=True)
class DistillConfig:
    """Defaults are those of the released models' first stage where a laptop can have them (spec 2, "Recipe").

    data: sources, each plain or `TEACHER=SOURCE`. batch_size: images a step over all ranks. learning_rate is that of a
    batch of 256 and scales with the batch. crops: fixed crops a photo when `cache` is given.
    """

    teachers: tuple[str, ...]
    data: tuple[str, ...]
    student: str = "dune-vits14"
    size_px: int = 336
    steps: int = 1000
    batch_size: int = 128
    accumulate: int = 1
    learning_rate: float = 3e-4
    final_learning_rate: float = 1e-6
    warmup_fraction: float = 0.2
    weight_decay: float = 3e-2
    sharing: str = "lowest_loss"
    drop_probability: float = 0.5
    projector: str = "tp"
    norm: str = "mean-std"
    init: str | None = None
    seed: int = 0
    held_out_fraction: float = 0.03
    photometric: bool = True
    cache: str | None = None
    crops: int = 4
    dtype: str = "auto"
    compile: bool = False
    fsdp: bool = False
    checkpoint_minutes: float = 10.0
    log_every: int = 10
    workers: int = 2
    device: str = "auto"
    logger: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"dune-vit[sb]14|dune-mini(:.*)?|vit:\d+x\d+|timm:.+", self.student):
            raise unknown_student(self.student)
        _one_of("--sharing", self.sharing, STRATEGIES)
        _one_of("--projector", self.projector, PROJECTORS)
        _one_of("--norm", self.norm, NORMS)
        if self.logger is not None:
            _one_of("--logger", self.logger, LOGGERS)
        for option, value in (
            ("--size", self.size_px),
            ("--steps", self.steps),
            ("--batch-size", self.batch_size),
            ("--accumulate", self.accumulate),
            ("--crops", self.crops),
            ("--workers", self.workers),
            ("--log-every", self.log_every),
        ):
            if value < 1:
                raise UserError(f"{option} {value} must be 1 or more")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed} must be 0 or more")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise UserError(f"--lr {self.learning_rate} must be above 0")
        if self.batch_size % self.accumulate:
            raise UserError(f"--batch-size {self.batch_size} is no multiple of --accumulate {self.accumulate}")
        if not self.teachers:
            raise UserError("--teachers needs at least one teacher")
        if not self.data:
            raise UserError("--data needs at least one source of images")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up: linear in the batch."""
        return self.learning_rate * self.batch_size / 256


def differences(old: dict[str, Any], new: DistillConfig) -> list[str]:
    """What a resumed run would change, as `name: old → new`; what may change (and where a cache lies) is left out."""
    now = as_json(new)
    names = [field.name for field in fields(new) if field.name not in FREE]
    if old.get("cache") and now["cache"]:
        names.remove("cache")
    return changes(old, now, names)


def changes(old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Which of the settings `names` differ between two JSON objects, as `name: old → new`."""
    differ = [name for name in names if name not in old or json.dumps(old[name]) != json.dumps(new[name])]
    told = [f"{name}: {_shown(old.get(name))} → {_shown(new[name])}" for name in differ[:TOLD]]
    return told + ([f"and {len(differ) - TOLD} more"] if len(differ) > TOLD else [])


def as_json(config: DistillConfig) -> dict[str, Any]:
    """The settings as JSON holds them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}


def _shown(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return shown(text) if text else "nothing"


def unknown_student(name: str) -> UserError:
    """The error for a --student that is none of `STUDENTS`."""
    return UserError(f"unknown --student {name!r}; known: {', '.join(STUDENTS)}")


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{option} {value!r} is unknown; allowed: {', '.join(allowed)}")
