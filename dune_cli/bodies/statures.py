"""Standing heights: those given, and the assumed one of adults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dune_cli.bodies.fit_targets import ASSUMED_STATURE_M, ASSUMED_STATURE_SD_M
from dune_cli.bodies.fitting import shape_of_stature
from dune_cli.bodies.skeleton import AnnySkeleton
from dune_cli.errors import UserError

GIVEN_SD_M = 0.005  # of a height that is given


@dataclass(frozen=True)
class AssumedHeight:
    """Standing height of adults in metres, from which distances follow, and its deviation. given: by the user."""

    mean: float
    sd: float
    given: bool = False


def assumed_height(heights: Sequence[float] | None) -> AssumedHeight:
    """What the JSON says of the people's size."""
    if heights is None:
        return AssumedHeight(ASSUMED_STATURE_M, ASSUMED_STATURE_SD_M)
    return AssumedHeight(float(np.mean(heights)), 0.0, given=True)


def standing_heights(
    skeleton: AnnySkeleton, heights: Sequence[float] | None, people: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (P,), deviation (P,) and starting shapes (P, 6) of standing heights in metres: those given, one for all or
    one a person, or the assumed ones of adults. UserError for another number of heights."""
    if heights is None:
        means = np.full(people, ASSUMED_STATURE_M)
    elif len(heights) in (1, people):
        means = np.broadcast_to(np.array(heights, np.float64), (people,)).copy()
    else:
        raise UserError(
            f"{len(heights)} heights were given, and {people} people are in the photo; give one for all, or one "
            "a person from left to right"
        )
    deviation = ASSUMED_STATURE_SD_M if heights is None else GIVEN_SD_M
    return means, np.full(people, deviation), shape_of_stature(skeleton, means)
