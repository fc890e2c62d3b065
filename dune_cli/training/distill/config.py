"""The settings of a distillation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from dune_cli.errors import UserError
from dune_cli.training.common.config import TrainingConfig, check_choice, check_minimum
from dune_cli.training.common.run_folder import LOGGERS

NORMS = ("mean-std", "phi-s")
STUDENTS = ("dune-vits14", "dune-vitb14", "dune-mini", "dune-mini:STEM", "vit:WIDTHxDEPTH", "timm:MODEL")
PROJECTORS = ("tp", "sp", "lp")
STRATEGIES = ("none", "lowest_loss", "own_data", "own+generic_data")


@dataclass(frozen=True)
class DistillConfig(TrainingConfig):
    """Defaults: the released models' first stage, as far as a laptop allows (docs/models/distillation.md).

    data: sources, each plain or `TEACHER=SOURCE`. batch_size: images a step over all processes. learning_rate: at batch
    size 256; it scales with the batch. crops: fixed crops a photo, when `cache` is given. With `fsdp`, which may change
    on resume, results are equal but for rounding.
    """

    SCHEMA: ClassVar[str] = "dune.distill-run/1"
    KIND: ClassVar[str] = "a distillation"
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset(
        {"checkpoint_minutes", "workers", "device", "log_every", "logger", "fsdp"}
    )
    INPUTS: ClassVar[dict[str, str]] = {"teachers": "the weights of {}", "photos": "the photos of --data"}

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
        check_choice("--sharing", self.sharing, STRATEGIES)
        check_choice("--projector", self.projector, PROJECTORS)
        check_choice("--norm", self.norm, NORMS)
        if self.logger is not None:
            check_choice("--logger", self.logger, LOGGERS)
        self.check_common()
        check_minimum(
            1,
            {
                "--size": self.size_px,
                "--batch-size": self.batch_size,
                "--accumulate": self.accumulate,
                "--crops": self.crops,
                "--workers": self.workers,
            },
        )
        if self.batch_size % self.accumulate:
            raise UserError(f"--batch-size {self.batch_size} is no multiple of --accumulate {self.accumulate}")
        if not self.teachers:
            raise UserError("--teachers needs at least one teacher")
        if not self.data:
            raise UserError("--data needs at least one source of images")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up: linear in the batch size."""
        return self.learning_rate * self.batch_size / 256

    def changes_from(self, recorded: Mapping[str, Any]) -> list[str]:
        """As the base class; the folder of the teacher cache may change, too."""
        names = [field.name for field in fields(self) if field.name not in self.MAY_CHANGE]
        if recorded.get("cache") and self.cache:
            names.remove("cache")
        return self._changes(recorded, names)


def unknown_student(name: str) -> UserError:
    """The error for a --student that is none of `STUDENTS`."""
    return UserError(f"unknown --student {name!r}; known: {', '.join(STUDENTS)}")
