"""The settings of `dune train human`, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dune_cli.errors import UserError
from dune_cli.training.common.config import TrainingConfig, check_minimum
from dune_cli.training.heads.config import check_schedule

SMALLEST_PX = 64


@dataclass(frozen=True)
class PeopleHeadTrainingConfig(TrainingConfig):
    """encoder: name or file. photos: folders or .txt lists of photos, with people and without. features: names (empty:
    `default_features`). synthetic: number of made-up pictures. views: of each photo, the whole one and random crops.
    size_px: side of the square input. width, hidden, depth: of the head's tokens. The rest as in `HeadTrainingConfig`.
    """

    SCHEMA: ClassVar[str] = "dune.people-head-run/1"
    KIND: ClassVar[str] = "the training of a head for people"
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"device", "checkpoint_minutes", "cache"})
    INPUTS: ClassVar[dict[str, str]] = {
        "encoder": "the encoder's weights",
        "photos": "the photos of --photos",
        "teacher": "the teacher's weights",
    }

    encoder: str
    photos: tuple[str, ...]
    features: tuple[str, ...] = ()
    synthetic: int = 1000
    views: int = 4
    size_px: int = 384
    width: int = 256
    hidden: int = 512
    depth: int = 2
    held_out_fraction: float = 0.1
    steps: int = 2000
    batch_size: int = 16
    learning_rate: float = 5e-4
    weight_decay: float = 5e-2
    average: float = 0.995
    evaluate_every: int = 100
    patience: int = 8
    cache: str | None = None
    dtype: str = "float32"
    checkpoint_minutes: float = 5.0
    log_every: int = 20
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        self.check_common()
        check_schedule(self)
        check_minimum(1, {"--views": self.views})
        check_minimum(0, {"--synthetic": self.synthetic})
        check_minimum(SMALLEST_PX, {"--size": self.size_px})
        if not self.photos:
            raise UserError("--photos needs at least one folder or list of photos, with people on some of them")
