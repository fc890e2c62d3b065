"""The processes of a run: one, or those that torchrun started."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from dune_cli.errors import UserError
from dune_cli.training.distill.students import Student

PATIENCE = timedelta(hours=12)  # a rank may fill its part of a teacher cache long after the others


@dataclass(frozen=True)
class Dist:
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
def dist_from_environment(device: torch.device) -> Iterator[Dist]:
    """Joins torchrun's process group (nccl on CUDA, gloo elsewhere) for the time of the run; a single process else."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Dist(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Dist(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


# The student on several processes: copied (DDP) or sharded (FSDP2), and whole again at the end.


def wrap(student: Student, compiled: bool, sharded: bool, here: Dist) -> nn.Module:
    """The student as the loop calls it: itself, or its DDP or FSDP2 form when there are several ranks."""
    if compiled:
        # the compiler sees through a cache of constants, and looks for a GPU's toolkit: neither concerns the user
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        student.compile()
    if sharded and here.count == 1:
        raise UserError("--fsdp shards the student over several processes; start it with torchrun, or leave it out")
    if sharded:
        from torch.distributed.fsdp import fully_shard

        for block in getattr(student.encoder, "blocks", ()):
            fully_shard(block)
        return fully_shard(student)
    if here.count > 1:
        ids = [here.device.index] if here.device.type == "cuda" else None
        return DistributedDataParallel(student, device_ids=ids)
    return student


def attention_kernel(compiled: bool, here: Dist) -> AbstractContextManager[None]:
    """Which attention the loop runs: torch's choice, but plain products for a compiled student on CPUs.

    There the compiler fuses softmax and casts into few passes: 14.1 images/s against 12.2 for `dune-mini` on a thread
    (224 px), where torch's kernel takes a fifth of a step for its backward pass.
    """
    plain = compiled and here.device.type == "cpu"
    return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()


def whole(model: nn.Module, fresh: Callable[[], Student], here: Dist) -> Student:
    """The plain student with the trained weights; all ranks must call it, the first gets the weights.

    fresh: makes the student anew, for the weights of a sharded one.
    """
    if isinstance(model, DistributedDataParallel):
        return model.module
    if not hasattr(model, "unshard"):
        return model
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    student = fresh()
    if here.is_first:
        student.load_state_dict(state)
    return student.to(here.device)
