"""The settings of `dune train human`, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from dune_cli.errors import UserError
from dune_cli.training.common.config import check_minimum
from dune_cli.training.heads.config import HeadSchedule

SMALLEST_PX = 64


@dataclass(frozen=True)
class PeopleHeadTrainingConfig(HeadSchedule):
    """encoder: name or file. photos: folders or .txt lists of photos, with people and without. features: names (empty:
    `default_features`). synthetic: number of made-up pictures. views: of each photo, the whole one and random crops.
    size_px: side of the square input. width, hidden, depth: of the head's tokens.
    """

    SCHEMA: ClassVar[str] = "dune.people-head-run/1"
    KIND: ClassVar[str] = "the training of a head for people"
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
    learning_rate: float = field(default=5e-4, kw_only=True)
    weight_decay: float = field(default=5e-2, kw_only=True)

    def __post_init__(self) -> None:
        self.check_schedule()
        check_minimum(1, {"--views": self.views})
        check_minimum(0, {"--synthetic": self.synthetic})
        check_minimum(SMALLEST_PX, {"--size": self.size_px})
        if not self.photos:
            raise UserError("--photos needs at least one folder or list of photos, with people on some of them")
