"""The student on several processes: copied (DDP) or sharded (FSDP2), and whole again at the end."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from dune_cli.errors import UserError
from dune_cli.training.ranks import Ranks
from dune_cli.training.students import Student


def wrap(student: Student, compiled: bool, sharded: bool, here: Ranks) -> nn.Module:
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


def attention_kernel(compiled: bool, here: Ranks) -> AbstractContextManager[None]:
    """Which attention the loop runs: torch's choice, but plain products for a compiled student on CPUs.

    There the compiler fuses softmax and casts into few passes: 14.1 images/s against 12.2 for `dune-mini` on a thread
    (224 px), where torch's kernel takes a fifth of a step for its backward pass.
    """
    plain = compiled and here.device.type == "cpu"
    return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()


def whole(model: nn.Module, fresh: Callable[[], Student], here: Ranks) -> Student:
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
