"""The settings of `dune train matcher`, checked before any work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from dune_cli.errors import UserError
from dune_cli.models.match_head import CHANNELS
from dune_cli.training.common.config import TrainingConfig, check_minimum


@dataclass(frozen=True)
class MatcherConfig(TrainingConfig):
    """encoder: file or name of a dune-mini. data: folders of scenes. photos: folders of photos to warp.
    init: file of a head with the initial weights (None: the open ones). labels: folder of the teacher's matches (None:
    inside the run's). context: encoder maps that the head uses. pairs: image pairs a step. keypoints: of each image in
    training. warped_share: share of the pairs that are warped photos. validate: scenes to hold out instead of
    `held_out_fraction` of them. validation_pairs: at most, of each held-out scene.
    """

    SCHEMA: ClassVar[str] = "dune.matcher-run/1"
    KIND: ClassVar[str] = "a matcher's training"
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"device", "checkpoint_minutes", "log_every", "teacher_minutes"})
    INPUTS: ClassVar[dict[str, str]] = {
        "encoder": "the encoder's weights",
        "scenes": "the scenes of --scenes",
        "pairs": "the number of labelled pairs",
        "photos": "the photos of --photos",
    }

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
        self.check_common()
        check_minimum(
            1, {"--batch-size": self.pairs, "--keypoints": self.keypoints, "--max-keypoints": self.max_keypoints}
        )
        check_minimum(32, {"--size": self.size_px})
        if not 0 <= self.warped_share <= 1:
            raise UserError(f"--warped {self.warped_share} must lie between 0 and 1")
        if self.warped_share > 0 and not self.photos:
            raise UserError("--warped needs photos to warp: give --photos DIR, or --warped 0")
        if self.warped_share < 1 and not self.data:
            raise UserError("--scenes needs at least one folder of scenes; without any, give --warped 1")

    def as_json(self) -> dict[str, Any]:
        """As the base class; a `teacher_minutes` without limit is None."""
        minutes = None if math.isinf(self.teacher_minutes) else self.teacher_minutes
        return super().as_json() | {"teacher_minutes": minutes}
