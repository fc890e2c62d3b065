"""The settings of `dune train matcher`, checked before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from dune_cli.errors import UserError
from dune_cli.models.match_head import CHANNELS
from dune_cli.training.distill.config import changes

FREE = {"device", "checkpoint_minutes", "log_every", "teacher_minutes"}  # may change on resume


@dataclass(frozen=True)
class MatcherConfig:
    """encoder: file or name of a dune-mini. data: folders of scenes. photos: folders of photos to warp.
    init: a head's file to go on from. labels: folder of the teacher's matches (None: inside the run's). context: parts
    of the head's. pairs: image pairs a step. keypoints: of each image in training. warped_share: of pairs that are
    warped photos. validate: scenes to hold out instead of a share of them.
    """

    encoder: str
    data: tuple[str, ...]
    photos: tuple[str, ...] = ()
    init: str | None = None
    labels: str | None = None
    teacher_minutes: float = math.inf
    context: tuple[str, ...] = ("xfeat4", "lite4", "lite8", "tokens")
    steps: int = 5000
    pairs: int = 2
    keypoints: int = 1024
    warped_share: float = 0.4
    learning_rate: float = 1e-4
    weight_decay: float = 1e-3
    held_out_fraction: float = 0.15
    validate: tuple[str, ...] = ()
    validation_pairs: int = 5
    size_px: int = 960
    max_keypoints: int = 2048
    prune_below: float = 0.05
    bfloat16: bool = False
    checkpoint_minutes: float = 5.0
    log_every: int = 10
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.context) - set(CHANNELS))
        if unknown:
            raise UserError(f"--context {unknown[0]!r} is unknown; allowed: {', '.join(CHANNELS)}")
        whole = {
            "--steps": self.steps,
            "--pairs": self.pairs,
            "--keypoints": self.keypoints,
            "--max-keypoints": self.max_keypoints,
            "--log-every": self.log_every,
        }
        for option, value in whole.items():
            if value < 1:
                raise UserError(f"{option} {value} must be 1 or more")
        if self.size_px < 32:
            raise UserError(f"--size {self.size_px} must be 32 or more")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise UserError(f"--lr {self.learning_rate} must be above 0")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed} must be 0 or more")
        if not 0 <= self.warped_share <= 1:
            raise UserError(f"--warped {self.warped_share} must lie between 0 and 1")
        if self.warped_share > 0 and not self.photos:
            raise UserError("--warped needs photos to warp: give --photos DIR, or --warped 0")
        if self.warped_share < 1 and not self.data:
            raise UserError("--data needs at least one folder of scenes; without any, give --warped 1")

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON holds them."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return plain | {"teacher_minutes": None if math.isinf(self.teacher_minutes) else self.teacher_minutes}

    def differences(self, old: Mapping[str, Any]) -> list[str]:
        """What a resumed run would change, as `name: old → new`; what may change is left out."""
        now = self.as_json()
        return changes(old, now, [field.name for field in fields(self) if field.name not in FREE])
