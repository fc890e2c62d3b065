"""Which image a place in a batch holds: a function of seed and position alone, so a resumed run goes on exactly."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Slot:
    """One place of a batch: item `index` of `group`, the `position`-th draw of that group, in its `epoch`."""

    group: int
    index: int
    position: int
    epoch: int


@dataclass(frozen=True)
class Sampler:
    """Balanced over groups: every batch holds the same number of images of each (spec 2, "Data-sharing").

    sizes: items a group. batch: images of one rank's batch. The largest group sets the epoch; smaller ones are cycled
    and reshuffled.
    """

    sizes: tuple[int, ...]
    batch: int
    seed: int
    rank: int = 0
    ranks: int = 1

    @property
    def per_group(self) -> int:
        return -(-self.batch // len(self.sizes))

    @property
    def steps_per_epoch(self) -> int:
        return max(1, max(self.sizes) // (self.per_group * self.ranks))

    def slots(self, step: int) -> list[Slot]:
        """The batch of `step` on this rank: group by group, cut to the batch size."""
        slots = []
        for group, size in enumerate(self.sizes):
            first = (step * self.ranks + self.rank) * self.per_group
            for position in range(first, first + self.per_group):
                epoch, place = divmod(position, size)
                slots.append(Slot(group, int(permutation(self.seed, group, epoch, size)[place]), position, epoch))
        return slots[: self.batch]


@lru_cache(maxsize=32)
def permutation(seed: int, group: int, epoch: int, size: int) -> np.ndarray:
    """The order of a group's items in an epoch."""
    return np.random.default_rng([seed, group, epoch]).permutation(size)


def is_held_out(name: str, fraction: float) -> bool:
    """Whether an image is kept from training: a fixed share by the hash of its name, whatever else is in the folder."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "big") < fraction * 2**32
