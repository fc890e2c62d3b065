"""The processes of a run: one, or those that torchrun started; a model copied (DDP) or sharded (FSDP2) over them."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from dune_cli.errors import UserError

TIMEOUT = timedelta(hours=12)  # a process may fill its part of a teacher cache long after the others
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Dist:
    """This process's rank, the number of processes, and this process's device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Waits until all processes are here."""
        if self.world_size > 1:
            torch.distributed.barrier()

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds on any process; the same answer on all."""
        if self.world_size == 1:
            return flag
        value = torch.tensor(int(flag), device=self.device)
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
        return bool(value)

    def gather(self, row: torch.Tensor) -> torch.Tensor:
        """The rows (N) of all processes by rank: (world_size, N), on the CPU."""
        if self.world_size == 1:
            return row[None].cpu()
        rows = [torch.empty_like(row, device=self.device) for _ in range(self.world_size)]
        torch.distributed.all_gather(rows, row.to(self.device))
        return torch.stack(rows).cpu()


@contextmanager
def dist_from_environment(device: torch.device) -> Iterator[Dist]:
    """Joins torchrun's process group (nccl on CUDA, gloo elsewhere) inside the context; else a single process."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Dist(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Dist(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
    finally:
        torch.distributed.destroy_process_group()


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes; the tensor itself outside torchrun."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
    return value


def wrap_model(model: nn.Module, blocks: Iterable[nn.Module], compiled: bool, sharded: bool, dist: Dist) -> nn.Module:
    """The model as the loop calls it: itself, or its DDP or FSDP2 form on several processes.

    blocks: parts of the model that FSDP2 shards one by one. UserError for `sharded` in a single process.
    """
    if compiled:
        # the compiler sees through a cache of constants, and looks for a GPU's toolkit: neither concerns the user
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        model.compile()
    if sharded and dist.world_size == 1:
        raise UserError("--fsdp shards the student over several processes; start it with torchrun, or leave it out")
    if sharded:
        from torch.distributed.fsdp import fully_shard

        for block in blocks:
            fully_shard(block)
        return fully_shard(model)
    if dist.world_size > 1:
        ids = [dist.device.index] if dist.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)
    return model


def unwrap_model(wrapped: nn.Module, new_model: Callable[[], M], dist: Dist) -> M:
    """The plain model of `wrap_model`'s. All processes must call it; of a sharded model the main one gets the weights.

    new_model: makes a model of the same architecture, for the weights of a sharded one.
    """
    if isinstance(wrapped, DistributedDataParallel):
        return wrapped.module
    if not hasattr(wrapped, "unshard"):
        return wrapped
    state_dict = get_model_state_dict(wrapped, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    model = new_model()
    if dist.is_main:
        model.load_state_dict(state_dict)
    return model.to(dist.device)


def attention_kernel(compiled: bool, dist: Dist) -> AbstractContextManager[None]:
    """Selects the attention kernel: torch's choice, but plain matrix products for a compiled model on CPUs.

    There the compiler fuses softmax and casts into few passes: 14.1 images/s against 12.2 for `dune-mini` on one thread
    (224 px), where torch's kernel takes a fifth of a step for its backward pass.
    """
    use_math = compiled and dist.device.type == "cpu"
    return sdpa_kernel(SDPBackend.MATH) if use_math else nullcontext()
