"""Which image each place of a batch holds: a function of seed and step alone, for exact resume."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dune_cli.errors import UserError


@dataclass(frozen=True)
class BatchSlot:
    """One place of a batch: item `index` of `group`, the `position`-th draw of that group, in its `epoch`."""

    group: int
    index: int
    position: int
    epoch: int


@dataclass(frozen=True)
class Sampler:
    """Balanced over groups: every step holds the same number of images of each (docs/models/distillation.md).

    group_sizes: items of each group. batch_size: images of a step over all processes, of which this one takes every
    `world_size`-th, so that the part of each process is balanced too. The largest group sets the epoch; smaller ones
    are repeated and reshuffled. The remainder of the division goes to the first groups: 128 images of three groups are
    43, 43 and 42. Raises UserError for a batch that holds fewer images than groups, or cannot be divided by the
    processes.
    """

    group_sizes: tuple[int, ...]
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < len(self.group_sizes):
            raise UserError(
                f"--batch-size {self.batch_size} is too small: the data form {len(self.group_sizes)} groups, one for "
                "each tagged teacher, and a step holds images of all"
            )
        if self.batch_size % self.world_size:
            raise UserError(f"--batch-size {self.batch_size} must be a multiple of the {self.world_size} processes")

    @property
    def counts(self) -> tuple[int, ...]:
        """Images of each group in a step."""
        quotient, remainder = divmod(self.batch_size, len(self.group_sizes))
        return tuple(quotient + (group < remainder) for group in range(len(self.group_sizes)))

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every group has been seen once."""
        return max(-(-size // count) for size, count in zip(self.group_sizes, self.counts))

    def all_slots(self, step: int) -> list[BatchSlot]:
        """The step's images over all processes, group by group; the same for any number of processes."""
        slots = []
        for group, (size, count) in enumerate(zip(self.group_sizes, self.counts)):
            for position in range(step * count, (step + 1) * count):
                epoch, place = divmod(position, size)
                slots.append(BatchSlot(group, int(permutation(self.seed, group, epoch, size)[place]), position, epoch))
        return slots

    def slots(self, step: int) -> list[BatchSlot]:
        """This process's images of a step."""
        return self.all_slots(step)[self.rank :: self.world_size]


@lru_cache(maxsize=16)
def permutation(seed: int, group: int, epoch: int, size: int) -> np.ndarray:
    """The order of a group's items in an epoch, (size,) int64."""
    return np.random.default_rng([seed, group, epoch]).permutation(size)


def held_out_mask(names: list[str], fraction: float) -> list[bool]:
    """Which images are held out from training: a fixed share by the hash of their names, independent of the others.

    With `fraction` above 0 and none chosen, the image of the smallest hash among two or more is held out.
    """
    hashes = [int.from_bytes(hashlib.sha256(name.encode(errors="replace")).digest()[:4], "big") for name in names]
    mask = [value < fraction * 2**32 for value in hashes]
    if fraction > 0 and not any(mask) and len(names) > 1:
        mask[hashes.index(min(hashes))] = True
    return mask
