"""The processes that torchrun started for one run in shards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from dune_cli.tasks.large_folders.shards import ShardTask

TIMEOUT = timedelta(days=30)  # a process waits for those that have more to do


@dataclass(frozen=True)
class Ranks:
    """This process and how many there are. `local`: its number on this machine, of `local_size`."""

    rank: int = 0
    size: int = 1
    local: int = 0
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process makes the manifest and the summary."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns when all processes have called it."""
        if self.size > 1:
            import torch

            torch.distributed.barrier()

    def tasks(self, shards: int, helps: bool = True) -> list[ShardTask]:
        """The shards of this process, and if it `helps`, those of the others from their ends for when it is done."""
        own = range(self.rank, shards, self.size)
        steps = range(1, self.size) if helps else ()
        others = (range((self.rank + step) % self.size, shards, self.size) for step in steps)
        return [
            *(ShardTask(number) for number in own),
            *(ShardTask(number, own=False) for one in others for number in reversed(one)),
        ]


@contextmanager
def ranks_from_environment() -> Iterator[Ranks]:
    """Those of torchrun, which wait for each other; else this process alone."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names) or os.environ["WORLD_SIZE"] == "1":
        yield Ranks()
        return
    import torch

    torch.distributed.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield Ranks(*(int(os.environ[name]) for name in names))
    finally:
        torch.distributed.destroy_process_group()
