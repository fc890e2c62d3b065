"""Checkpoints of a run: model, optimizer and other modules, as safetensors files with an index. No pickle.

    index.json              schema, step, each tensor's type, shape and shards, each file's size and sha256
    rank-00000.safetensors  the shards of process 0; a tensor that all processes hold is in this file alone

Any number of processes reads what any other number wrote. A checkpoint is renamed into place when it is complete, and
the last two are kept. File format: github.com/huggingface/safetensors, README.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel

from dune_cli.errors import JobFailed, UserError
from dune_cli.io.safe_read import read_json
from dune_cli.training.common.dist import Dist

KEEP = 2  # complete checkpoints
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state of a parameter, of its shape
STEPS = "step"  # AdamW's step count of a parameter, a scalar
SCHEMA = "dune.checkpoint/1"
INDEX = "index.json"
MAX_INDEX_BYTES = 64 << 20
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_FILE_NAME = re.compile(r"rank-\d{5}\.safetensors")
_BLOCK_BYTES = 1 << 24


class DamagedError(ValueError):
    """A checkpoint whose content differs from its index, or from what the run needs."""


class EarlierFormatError(ValueError):
    """A checkpoint of torch.distributed.checkpoint, whose metadata is a pickle."""


@dataclass(frozen=True)
class TensorShard:
    """A block of a tensor: its first element's indices, its shape, and the process that holds it."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    rank: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's entry in the index."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    shards: tuple[TensorShard, ...]


@dataclass(frozen=True)
class Index:
    """The content of a checkpoint. files: name -> (bytes, sha256)."""

    step: int
    tensors: Mapping[str, StoredTensor]
    files: Mapping[str, tuple[int, str]]


class RunState:
    """What a run needs to resume: the model, its AdamW optimizer, other modules by name, and the step.

    Random numbers and learning rates follow from the settings and the step, and are not stored.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, modules: Mapping[str, nn.Module] | None = None
    ) -> None:
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.optimizer, self.modules = optimizer, modules or {}

    def save(self, folder: Path, step: int, dist: Dist) -> None:
        """Writes `folder/step-N` atomically and removes all but the last two checkpoints.

        JobFailed when it cannot be written (a full disk); earlier checkpoints stay as they were.
        """
        target = folder / f"step-{step:08d}"
        temporary = folder / f".step-{step:08d}.tmp"
        if target.exists():
            return
        try:
            if dist.is_main:
                for leftover in folder.glob(".step-*.tmp"):  # of a killed run
                    shutil.rmtree(leftover, ignore_errors=True)
                temporary.mkdir(parents=True)
            dist.barrier()
            tensors = self._module_tensors()
            for name, parameter in self._optimized_parameters():
                moments = self.optimizer.state.get(parameter, {})
                tensors |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
            write(temporary, step, tensors, dist)
            if dist.is_main:
                temporary.rename(target)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = (error.strerror or str(error)).lower()
            raise JobFailed(
                f"cannot write the checkpoint {target} ({reason}); the last good one is "
                f"{latest_checkpoint(folder) or 'none'}: free some space and run the same command again"
            ) from error
        if dist.is_main:
            for old in list_checkpoints(folder)[:-KEEP]:
                shutil.rmtree(old, ignore_errors=True)
        dist.barrier()

    def restore(self, path: Path, dist: Dist) -> int:
        """Loads a checkpoint of any number of processes in place and returns its step.

        UserError for a damaged checkpoint, and for one that an earlier version wrote.
        """
        try:
            index = read_index(path)
            if f"step-{index.step:08d}" != path.name:
                raise DamagedError(f"it is of step {index.step}")
            check_files(path, index, dist)
            moments = self._empty_moments(index)
            tensors = self._module_tensors()
            for name, values in moments.items():
                tensors |= {f"optimizer.{name}.{key}": value for key, value in values.items()}
            if unknown := sorted(index.tensors.keys() - tensors.keys()):
                raise DamagedError(f"it holds {unknown[0][:80]}, which this run does not have")
            read(path, index, tensors)
        except EarlierFormatError as error:
            raise UserError(
                f"the checkpoint {path} was written by an earlier version of dune, as a pickle, which is no longer "
                "read; finish the run with that version, or start it again with another -o (a finished student or "
                "matcher of that run is taken by --init)"
            ) from error
        except DamagedError as error:
            raise UserError(
                f"the checkpoint {path} cannot be read ({error}); delete it to resume from the previous one"
            ) from error
        numbers = {name: number for number, (name, _) in enumerate(self._optimized_parameters())}
        state = {numbers[name]: values for name, values in moments.items()}
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        return index.step

    def _module_tensors(self) -> dict[str, torch.Tensor]:
        modules = {"model": self.model, **self.modules}
        return {f"{name}.{key}": value for name, part in modules.items() for key, value in part.state_dict().items()}

    def _optimized_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The optimizer's parameters in its order, by name."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [(names[id(p)], p) for group in self.optimizer.param_groups for p in group["params"]]

    def _empty_moments(self, index: Index) -> dict[str, dict[str, torch.Tensor]]:
        """Zeros for the optimizer's state of the parameters that have one in the checkpoint."""
        empty = {}
        for name, parameter in self._optimized_parameters():
            if any(f"optimizer.{name}.{key}" in index.tensors for key in (*MOMENTS, STEPS)):
                values = {key: torch.zeros_like(parameter, requires_grad=False) for key in MOMENTS}
                empty[name] = {STEPS: torch.zeros((), dtype=torch.float32), **values}
        return empty


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8}", path.name))


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint, if any."""
    return (list_checkpoints(folder) or [None])[-1]


# The files of a checkpoint


def write(folder: Path, step: int, tensors: Mapping[str, torch.Tensor], dist: Dist) -> None:
    """Writes this process's file into `folder`; the main process also writes the index.

    All processes give the same names. A sharded tensor is a DTensor on a mesh of all processes. An OSError in one
    process is raised in all.
    """
    failure: OSError | None = None
    size, digest = 0, bytes(32)
    stored = {name: _stored(name, tensor) for name, tensor in tensors.items()}
    local = {name: _local(tensor) for name, tensor in tensors.items() if _holds(stored[name], dist.rank)}
    try:
        size, digest = _write_file(folder / _file_name(dist.rank), local)
    except OSError as error:
        failure = error
    rows = dist.gather(torch.tensor([*size.to_bytes(8, "little"), *digest], dtype=torch.uint8))
    if dist.any(failure is not None):
        raise failure or OSError("another process cannot write its part")
    if dist.is_main:
        files = {
            _file_name(rank): (int.from_bytes(bytes(row[:8].tolist()), "little"), bytes(row[8:].tolist()).hex())
            for rank, row in enumerate(rows)
        }
        try:
            _write_index(folder / INDEX, Index(step, stored, files))
        except OSError as error:
            failure = error
    if dist.any(failure is not None):
        raise failure or OSError("the first process cannot write the index")


def read_index(folder: Path) -> Index:
    """The checked index. DamagedError; EarlierFormatError for a checkpoint of an earlier version."""
    path = folder / INDEX
    if not os.path.lexists(path) and ((folder / ".metadata").exists() or any(folder.glob("*.distcp"))):
        raise EarlierFormatError
    try:
        content = read_json(path, "the index of a checkpoint", MAX_INDEX_BYTES)
    except UserError as error:
        raise DamagedError(str(error)) from error
    try:
        digest = content.pop("sha256")
        if content["schema"] != SCHEMA:
            raise DamagedError(f"{INDEX} has the schema {str(content['schema'])[:40]!r}, not {SCHEMA!r}")
        if digest != hashlib.sha256(_canonical(content)).hexdigest():
            raise DamagedError(f"{INDEX} was changed")
        return _parse_index(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{INDEX} is damaged ({type(error).__name__})") from error


def check_files(folder: Path, index: Index, dist: Dist) -> None:
    """DamagedError unless every file has the size and sha256 of the index. The processes share the work."""
    problem = ""
    for number, (name, (size, digest)) in enumerate(index.files.items()):
        if number % dist.world_size == dist.rank and not problem:
            problem = _file_problem(folder / name, size, digest)
    if dist.any(bool(problem)):
        raise DamagedError(problem or "one of its files is damaged")


def read(folder: Path, index: Index, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fills `tensors` (of sharded ones, this process's shards) in place, bit for bit.

    DamagedError for a tensor that is missing, or of another type or shape.
    """
    from safetensors import safe_open

    for name, tensor in tensors.items():
        stored = index.tensors.get(name)
        if stored is None:
            raise DamagedError(f"{name} is missing")
        if stored.dtype != tensor.dtype or stored.shape != tuple(tensor.shape):
            raise DamagedError(
                f"{name} is {_describe(stored.dtype, stored.shape)}, not {_describe(tensor.dtype, tensor.shape)}"
            )
    try:
        with ExitStack() as stack:
            files = {
                rank: stack.enter_context(safe_open(folder / _file_name(rank), framework="pt", device="cpu"))
                for rank in {shard.rank for name in tensors for shard in index.tensors[name].shards}
            }
            for name, tensor in tensors.items():
                _fill(name, tensor, index.tensors[name], files)
    except OSError as error:
        raise DamagedError((error.strerror or str(error)).lower()) from error
    except DamagedError:
        raise
    except Exception as error:  # SafetensorError, and what the library's numbers out of range raise
        raise DamagedError(" ".join(str(error).split())[:200] or type(error).__name__) from error


def _file_name(rank: int) -> str:
    return f"rank-{rank:05}.safetensors"


def _describe(dtype: torch.dtype, shape: Any) -> str:
    return f"{str(dtype).removeprefix('torch.')} {tuple(shape)}"


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _stored(name: str, tensor: torch.Tensor) -> StoredTensor:
    """A tensor's shards over all processes; every process computes the same."""
    shape = tuple(tensor.shape)
    if not isinstance(tensor, DTensor) or isinstance(tensor.placements[0], Replicate):
        return StoredTensor(tensor.dtype, shape, (TensorShard((0,) * len(shape), shape, 0),))
    placement, mesh = tensor.placements[0], tensor.device_mesh
    if not isinstance(placement, Shard) or mesh.ndim != 1:
        raise NotImplementedError(f"{name} is spread as {tensor.placements} over {mesh.ndim} dimensions of processes")
    shards = []
    chunk = -(-shape[placement.dim] // mesh.size())
    for rank in range(mesh.size()):
        begin = min(rank * chunk, shape[placement.dim])
        end = min(begin + chunk, shape[placement.dim])
        offset, shard_shape = [0] * len(shape), list(shape)
        offset[placement.dim], shard_shape[placement.dim] = begin, end - begin
        shards.append(TensorShard(tuple(offset), tuple(shard_shape), rank))
    own_shape, expected = tuple(tensor.to_local().shape), shards[mesh.get_local_rank()].shape
    if own_shape != expected:
        raise NotImplementedError(f"{name} is shared unevenly: {own_shape}, expected {expected}")
    return StoredTensor(tensor.dtype, shape, tuple(shard for shard in shards if 0 not in shard.shape))


def _holds(stored: StoredTensor, rank: int) -> bool:
    return any(shard.rank == rank for shard in stored.shards)


def _write_file(path: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[int, bytes]:
    """Writes a safetensors file tensor by tensor and flushes it to the disk; returns its size and sha256."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, end = {}, 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for block in _blocks(text, [tensors[name] for name in order]):
            digest.update(block)
            file.write(block)
            size += len(block)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.digest()


def _blocks(header: bytes, tensors: list[torch.Tensor]) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little") + header
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        content = memoryview(flat.numpy())
        for begin in range(0, len(content), _BLOCK_BYTES):
            yield content[begin : begin + _BLOCK_BYTES]


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _write_index(path: Path, index: Index) -> None:
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "step": index.step,
        "files": {name: {"size_bytes": size, "sha256": digest} for name, (size, digest) in index.files.items()},
        "tensors": {
            name: {
                "dtype": _CODES[stored.dtype],
                "shape": list(stored.shape),
                "parts": [{"rank": s.rank, "offset": list(s.offset), "shape": list(s.shape)} for s in stored.shards],
            }
            for name, stored in index.tensors.items()
        },
    }
    content["sha256"] = hashlib.sha256(_canonical(content)).hexdigest()
    with path.open("x", encoding="ascii") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _parse_index(content: Mapping[str, Any]) -> Index:
    step = _count(content["step"])
    files = {
        name: (_count(entry["size_bytes"]), str(entry["sha256"]))
        for name, entry in content["files"].items()
        if _FILE_NAME.fullmatch(name)
    }
    tensors = {}
    for name, entry in content["tensors"].items():
        shards = tuple(TensorShard(_shape(p["offset"]), _shape(p["shape"]), _count(p["rank"])) for p in entry["parts"])
        stored = StoredTensor(_DTYPES[entry["dtype"]], _shape(entry["shape"]), shards)
        _check_shards(name, stored, files)
        tensors[name] = stored
    return Index(step, tensors, files)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise DamagedError(f"{INDEX} has {str(value)[:40]!r} where a whole number belongs")
    return value


def _shape(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > 32:
        raise DamagedError(f"{INDEX} has no shape where one belongs")
    return tuple(_count(value) for value in values)


def _check_shards(name: str, stored: StoredTensor, files: Mapping[str, Any]) -> None:
    """DamagedError unless the shards lie inside the tensor and have as many elements as it has."""
    covered = 0
    for shard in stored.shards:
        inside = len(shard.offset) == len(shard.shape) == len(stored.shape) and all(
            begin + length <= whole for begin, length, whole in zip(shard.offset, shard.shape, stored.shape)
        )
        if not inside or _file_name(shard.rank) not in files:
            raise DamagedError(f"{INDEX} puts a part of {name[:80]} where none can be")
        covered += math.prod(shard.shape)
    if covered != math.prod(stored.shape):
        raise DamagedError(f"{INDEX} does not say where all of {name[:80]} lies")


def _file_problem(path: Path, size: int, digest: str) -> str:
    """How a file differs from its entry in the index; empty if it does not."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return f"{path.name} is no regular file"
        if status.st_size != size:
            return f"{path.name} has {status.st_size:,} bytes, {INDEX} says {size:,}"
        actual = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                actual.update(block)
    except OSError as error:
        return f"{path.name}: {(error.strerror or str(error)).lower()}"
    return "" if actual.hexdigest() == digest else f"{path.name} was changed: its sha256 is not the one of {INDEX}"


@torch.no_grad()
def _fill(name: str, tensor: torch.Tensor, stored: StoredTensor, files: Mapping[int, Any]) -> None:
    local = _local(tensor)
    offset = (0,) * local.ndim
    if local.shape != tensor.shape:
        rank = tensor.device_mesh.get_local_rank()  # type: ignore[attr-defined]
        offset = next((shard.offset for shard in _stored(name, tensor).shards if shard.rank == rank), offset)
    for shard in stored.shards:
        begins = [max(a, b) for a, b in zip(offset, shard.offset)]
        ends = [min(a + m, b + n) for a, m, b, n in zip(offset, local.shape, shard.offset, shard.shape)]
        if any(begin >= end for begin, end in zip(begins, ends)):
            continue
        source = files[shard.rank].get_slice(name)
        if tuple(source.get_shape()) != shard.shape or _DTYPES.get(source.get_dtype()) != stored.dtype:
            raise DamagedError(f"{name} is not in {_file_name(shard.rank)} as {INDEX} says")
        if not begins:
            local.copy_(files[shard.rank].get_tensor(name))
            continue
        in_source = tuple(slice(begin - b, end - b) for begin, end, b in zip(begins, ends, shard.offset))
        in_local = tuple(slice(begin - a, end - a) for begin, end, a in zip(begins, ends, offset))
        local[in_local].copy_(source[in_source])
