"""The metres of a scene's unit by the people in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dune_cli.bodies.statures import AssumedHeight

MAX_SD = 0.25  # of the logarithm of a person's scale that counts
_TUNING = 1.5  # deviations, beyond which a person counts less (Huber)
_ROUNDS = 20


@dataclass(frozen=True)
class PeopleScale:
    """metres_per_unit: of the scene. sd: standard deviation of its logarithm. people: how many tell it."""

    metres_per_unit: float
    sd: float
    people: int


def scale_of_people(scales: np.ndarray, sds: np.ndarray, assumed: AssumedHeight, given_sd: float) -> PeopleScale | None:
    """The scale of a scene from those of P people, metres of one unit each, and the deviations (P,) of their
    logarithms; None where no person tells one to MAX_SD.

    A robust mean (Huber, "Robust estimation of a location parameter", 1964), weighted by the deviations. Its deviation
    is the largest of: the people's own, that of their spread, and that of the assumed height, which does not average
    out, for who is in a picture is no fair sample of all adults. given_sd: of a height that is given, metres.
    """
    told = np.isfinite(scales) & (scales > 0) & (sds < MAX_SD)
    if not told.any():
        return None
    logs, sds = np.log(scales[told]), sds[told]
    order = np.argsort(logs)
    shares = np.cumsum((1 / sds**2)[order])
    mean = float(logs[order][np.searchsorted(shares, shares[-1] / 2)])
    for _ in range(_ROUNDS):
        away = np.abs(logs - mean) / sds
        weights = np.minimum(1, _TUNING / np.maximum(away, 1e-12)) / sds**2
        mean = float((weights * logs).sum() / weights.sum())
    spread = np.sqrt((weights * (logs - mean) ** 2).sum() / weights.sum() / max(len(logs) - 1, 1))
    floor = (given_sd if assumed.given else assumed.sd) / assumed.mean
    return PeopleScale(float(np.exp(mean)), float(max(weights.sum() ** -0.5, spread, floor)), len(logs))
