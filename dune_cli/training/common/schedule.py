"""Schedules over a run: learning rate and teacher-norm momentum. Source: the released models' recipe."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dune_cli.errors import UserError


def learning_rate(step: int, steps: int, peak: float, final: float = 1e-6, warmup_fraction: float = 0.2) -> float:
    """Linear from 0 over the first `warmup_fraction` of the steps, then a cosine from `peak` to `final`."""
    warmup = int(warmup_fraction * steps)
    if step < warmup:
        return peak * step / warmup
    return _cosine(peak, final, step - warmup, steps - warmup)


def norm_momentum(step: int, steps: int) -> float:
    """Momentum of the teacher norms: a cosine from 1.0 to 0.001 over all steps, without warm-up."""
    return _cosine(1.0, 1e-3, step, steps)


def _cosine(start: float, end: float, step: int, steps: int) -> float:
    progress = min(step / max(steps - 1, 1), 1.0)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))


# Which image a place in a batch holds: a function of seed and step alone, so a resumed run goes on exactly.


@dataclass(frozen=True)
class BatchSlot:
    """One place of a batch: item `index` of `group`, the `position`-th draw of that group, in its `epoch`."""

    group: int
    index: int
    position: int
    epoch: int


@dataclass(frozen=True)
class Sampler:
    """Balanced over groups: every step holds the same number of images of each (spec 2, "Data-sharing").

    sizes: items a group. batch: images of a step over all ranks, of which this rank takes every `ranks`-th, so that
    each rank's part is balanced too. The largest group sets the epoch; smaller ones are cycled and reshuffled. What
    does not divide goes to the first groups: 128 images of three groups are 43, 43 and 42.
    """

    sizes: tuple[int, ...]
    batch: int
    seed: int
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.batch < len(self.sizes):
            raise UserError(
                f"--batch-size {self.batch} is too small: the data form {len(self.sizes)} groups, one for each tagged "
                "teacher, and a step holds images of all"
            )
        if self.batch % self.ranks:
            raise UserError(f"--batch-size {self.batch} must be a multiple of the {self.ranks} processes")

    @property
    def counts(self) -> tuple[int, ...]:
        """Images of each group in a step."""
        each, left = divmod(self.batch, len(self.sizes))
        return tuple(each + (group < left) for group in range(len(self.sizes)))

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every group has been seen once."""
        return max(-(-size // count) for size, count in zip(self.sizes, self.counts))

    def all_slots(self, step: int) -> list[BatchSlot]:
        """The step's images over all ranks, group by group; the same for any number of ranks."""
        slots = []
        for group, (size, count) in enumerate(zip(self.sizes, self.counts)):
            for position in range(step * count, (step + 1) * count):
                epoch, place = divmod(position, size)
                slots.append(BatchSlot(group, int(permutation(self.seed, group, epoch, size)[place]), position, epoch))
        return slots

    def slots(self, step: int) -> list[BatchSlot]:
        """This rank's images of a step."""
        return self.all_slots(step)[self.rank :: self.ranks]


@lru_cache(maxsize=16)
def permutation(seed: int, group: int, epoch: int, size: int) -> np.ndarray:
    """The order of a group's items in an epoch."""
    return np.random.default_rng([seed, group, epoch]).permutation(size)


def held_out(names: list[str], fraction: float) -> list[bool]:
    """Which images are kept from training: a fixed share by the hash of their names, whatever else is in the folder.

    With `fraction` above 0 and none chosen, the one of the smallest hash among two or more is.
    """
    hashes = [int.from_bytes(hashlib.sha256(name.encode(errors="replace")).digest()[:4], "big") for name in names]
    kept = [value < fraction * 2**32 for value in hashes]
    if fraction > 0 and not any(kept) and len(names) > 1:
        kept[hashes.index(min(hashes))] = True
    return kept
