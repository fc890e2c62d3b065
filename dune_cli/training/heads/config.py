"""The settings of `dune train depth | segment | classify`, checked before any work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from dune_cli.errors import UserError
from dune_cli.models.heads import DENSE_KINDS, GLOBAL_KINDS, TASKS, Task
from dune_cli.training.common.config import TrainingConfig, check_choice, check_minimum
from dune_cli.training.heads.labels import LABEL_TEACHERS

KINDS_OF = {
    "depth": DENSE_KINDS,
    "segmentation": DENSE_KINDS,
    "classification": tuple(kind for kind in GLOBAL_KINDS if kind != "efficientnet-lite2"),
}


@dataclass(frozen=True, kw_only=True)
class HeadSchedule(TrainingConfig):
    """What the training of any head can set. held_out_fraction: of the photos, for validation. average: decay of the
    averaged weights, which are what is kept. patience: evaluations without a better validation loss before the run
    stops.
    """

    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"device", "checkpoint_minutes", "cache"})

    held_out_fraction: float = 0.1
    steps: int = 2000
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    average: float = 0.995
    evaluate_every: int = 100
    patience: int = 8
    cache: str | None = None
    dtype: str = "float32"
    checkpoint_minutes: float = 5.0
    log_every: int = 20
    seed: int = 0
    device: str = "auto"

    def check_schedule(self) -> None:
        """UserError for values that no head's training takes."""
        self.check_common()
        check_minimum(
            1,
            {
                "--batch-size": self.batch_size,
                "--evaluate-every": self.evaluate_every,
                "--patience": self.patience,
            },
        )
        if self.evaluate_every % self.log_every:
            raise UserError(f"--evaluate-every {self.evaluate_every} is no multiple of --log-every {self.log_every}")
        if not 0 < self.held_out_fraction < 1:
            raise UserError(f"--held-out {self.held_out_fraction} must lie between 0 and 1, both excluded")
        if not 0 <= self.average < 1:
            raise UserError(f"--average {self.average} must lie between 0 and 1, 1 excluded")


@dataclass(frozen=True)
class HeadTrainingConfig(HeadSchedule):
    """encoder: name or file. data: labelled sources (datasets.py). photos: folders or .txt lists of photos that
    `teacher` labels. leave_out: sets of the data that are not used. set_weights: (set, weight of its loss); the photos
    of `teacher` are the set of its name. validate: sets to hold out instead of a share of the scenes. kind: of the
    head. features: names (empty: the kind's own). tune: the encoder's weights are trained too, at `encoder_lr_scale` of
    the learning rate. size_px: side of the square with as many pixels as a training image. views: of each photo, the
    whole one and random crops. fov_deg: assumed field of view across the long side of photos whose camera is not known;
    None: their depth is compared up to scale.
    """

    SCHEMA: ClassVar[str] = "dune.head-run/1"
    KIND: ClassVar[str] = "a head's training"
    INPUTS: ClassVar[dict[str, str]] = {
        "encoder": "the encoder's weights",
        "examples": "the photos or labels of --data",
        "teacher": "the teacher's weights",
    }

    task: Task
    encoder: str
    data: tuple[str, ...]
    photos: tuple[str, ...] = ()
    teacher: str | None = None
    leave_out: tuple[str, ...] = ()
    set_weights: tuple[tuple[str, float], ...] = ()
    validate: tuple[str, ...] = ()
    kind: str = ""
    features: tuple[str, ...] = ()
    widths: tuple[int, int, int] = (96, 64, 32)
    tune: bool = False
    encoder_lr_scale: float = 0.1
    size_px: int = 272
    views: int = 4
    photometric: bool = True
    fov_deg: float | None = None

    def __post_init__(self) -> None:
        check_choice("the task", self.task, TASKS)
        if not self.kind:
            object.__setattr__(self, "kind", "mlp" if self.task == "classification" else "dpt")
        check_choice("--head", self.kind, KINDS_OF[self.task])
        self.check_schedule()
        check_minimum(1, {"--views": self.views})
        check_minimum(32, {"--size": self.size_px})
        check_minimum(8, {"--widths": min(self.widths)})
        if self.fov_deg is not None and not 0 < self.fov_deg < 180:
            raise UserError(f"--fov-deg {self.fov_deg} must lie between 0 and 180, both excluded")
        if not self.data and not self.photos:
            raise UserError("--data needs at least one source of labelled photos")
        if (self.teacher is None) != (not self.photos):
            raise UserError("--photos and --teacher go together: the teacher labels the photos; give both or none")
        if self.teacher is not None:
            check_choice("--teacher", self.teacher, LABEL_TEACHERS.get(self.task, ()))
        for name, weight in self.set_weights:
            if not (weight >= 0 and math.isfinite(weight)):
                raise UserError(f"--weight {name}={weight} must be 0 or more")

    def as_json(self) -> dict[str, Any]:
        """As the base class, with lists for the pairs of `set_weights`."""
        return super().as_json() | {"set_weights": [list(pair) for pair in self.set_weights]}
