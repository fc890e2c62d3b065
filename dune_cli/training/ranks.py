"""The processes of a run: one, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

PATIENCE = timedelta(hours=12)  # a rank may fill its part of a teacher cache long after the others


@dataclass(frozen=True)
class Ranks:
    """This process's number, how many there are, and its device."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.count > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds on any rank; every rank gets the same answer."""
        if self.count == 1:
            return flag
        value = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value)

    def gather(self, row: torch.Tensor) -> torch.Tensor:
        """The rows (N) of all ranks, in their order: (ranks, N). Every rank gives as many numbers."""
        if self.count == 1:
            return row[None].cpu()
        rows = [torch.empty_like(row, device=self.device) for _ in range(self.count)]
        dist.all_gather(rows, row.to(self.device))
        return torch.stack(rows).cpu()


@contextmanager
def ranks(device: torch.device) -> Iterator[Ranks]:
    """Joins torchrun's process group (nccl on CUDA, gloo elsewhere) for the time of the run; a single process else."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Ranks(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
