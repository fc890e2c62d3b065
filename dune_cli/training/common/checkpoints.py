"""A checkpoint on the disk: safetensors, one file a process, and an index that says what lies where. No pickle.

    index.json              schema, step, for each tensor its type, shape and parts, for each file its size and sha256
    rank-00000.safetensors  the parts that process 0 holds: all of a tensor that every process has, its own of a sharded

Any number of processes reads what any other number wrote. Format: github.com/huggingface/safetensors, README.
"""

from __future__ import annotations

import hashlib
import json
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

SCHEMA = "dune.checkpoint/1"
INDEX = "index.json"
MAX_INDEX_BYTES = 64 << 20
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_SHARD = re.compile(r"rank-\d{5}\.safetensors")
_BLOCK = 1 << 24


class DamagedError(ValueError):
    """A checkpoint that does not hold what its index says, or not what the run needs."""


class EarlierFormatError(ValueError):
    """A checkpoint of torch.distributed.checkpoint, whose metadata is a pickle."""


@dataclass(frozen=True)
class Part:
    """A block of a tensor: where it begins in the whole one, its sides, and the process that holds it."""

    offset: tuple[int, ...]
    sides: tuple[int, ...]
    rank: int


@dataclass(frozen=True)
class Stored:
    """What the index says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Index:
    """What a checkpoint holds. files: name -> (bytes, sha256)."""

    step: int
    tensors: Mapping[str, Stored]
    files: Mapping[str, tuple[int, str]]


def write(folder: Path, step: int, tensors: Mapping[str, torch.Tensor], here: Dist) -> None:
    """Writes this process's file into `folder`, and the index by the first process. OSError on one is raised on all.

    Every process gives the same names; a sharded tensor is a DTensor on a mesh of all processes.
    """
    failure: OSError | None = None
    size, digest = 0, bytes(32)
    stored = {name: _stored(name, tensor) for name, tensor in tensors.items()}
    own = {name: _local(tensor) for name, tensor in tensors.items() if _holds(stored[name], here.rank)}
    try:
        size, digest = _write_file(folder / _file_name(here.rank), own)
    except OSError as error:
        failure = error
    row = torch.tensor([*size.to_bytes(8, "little"), *digest], dtype=torch.uint8)
    rows = here.gather(row)
    if here.any(failure is not None):
        raise failure or OSError("another process cannot write its part")
    if here.is_first:
        files = {
            _file_name(rank): (int.from_bytes(bytes(row[:8].tolist()), "little"), bytes(row[8:].tolist()).hex())
            for rank, row in enumerate(rows)
        }
        try:
            _write_index(folder / INDEX, Index(step, stored, files))
        except OSError as error:
            failure = error
    if here.any(failure is not None):
        raise failure or OSError("the first process cannot write the index")


def read_index(folder: Path) -> Index:
    """The index, checked. DamagedError; EarlierFormatError for a checkpoint of an earlier version."""
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
        return _index(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{INDEX} is damaged ({type(error).__name__})") from error


def check_files(folder: Path, index: Index, here: Dist) -> None:
    """DamagedError unless every file has the size and sha256 of the index. The processes share the work."""
    wrong = ""
    for number, (name, (size, digest)) in enumerate(index.files.items()):
        if number % here.count == here.rank and not wrong:
            wrong = _what_is_wrong(folder / name, size, digest)
    if here.any(bool(wrong)):
        raise DamagedError(wrong or "one of its files is damaged")


def read(folder: Path, index: Index, wanted: Mapping[str, torch.Tensor]) -> None:
    """Fills the tensors of `wanted` (or this process's parts of them) in place, bit for bit.

    DamagedError for a tensor that is missing, or of another type or shape.
    """
    from safetensors import safe_open

    for name, tensor in wanted.items():
        found = index.tensors.get(name)
        if found is None:
            raise DamagedError(f"{name} is missing")
        if found.dtype != tensor.dtype or found.shape != tuple(tensor.shape):
            raise DamagedError(
                f"{name} is {_words(found.dtype, found.shape)}, not {_words(tensor.dtype, tensor.shape)}"
            )
    try:
        with ExitStack() as stack:
            opened = {
                rank: stack.enter_context(safe_open(folder / _file_name(rank), framework="pt", device="cpu"))
                for rank in {part.rank for name in wanted for part in index.tensors[name].parts}
            }
            for name, tensor in wanted.items():
                _fill(name, tensor, index.tensors[name], opened)
    except OSError as error:
        raise DamagedError((error.strerror or str(error)).lower()) from error
    except DamagedError:
        raise
    except Exception as error:  # SafetensorError, and what the library's numbers out of range raise
        raise DamagedError(" ".join(str(error).split())[:200] or type(error).__name__) from error


def _file_name(rank: int) -> str:
    return f"rank-{rank:05}.safetensors"


def _words(dtype: torch.dtype, shape: Any) -> str:
    return f"{str(dtype).removeprefix('torch.')} {tuple(shape)}"


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _stored(name: str, tensor: torch.Tensor) -> Stored:
    """The parts of a tensor over all processes, which each of them knows."""
    shape = tuple(tensor.shape)
    if not isinstance(tensor, DTensor) or isinstance(tensor.placements[0], Replicate):
        return Stored(tensor.dtype, shape, (Part((0,) * len(shape), shape, 0),))
    placement, mesh = tensor.placements[0], tensor.device_mesh
    if not isinstance(placement, Shard) or mesh.ndim != 1:
        raise NotImplementedError(f"{name} is spread as {tensor.placements} over {mesh.ndim} dimensions of processes")
    parts = []
    each = -(-shape[placement.dim] // mesh.size())
    for rank in range(mesh.size()):
        begin = min(rank * each, shape[placement.dim])
        end = min(begin + each, shape[placement.dim])
        offset, sides = [0] * len(shape), list(shape)
        offset[placement.dim], sides[placement.dim] = begin, end - begin
        parts.append(Part(tuple(offset), tuple(sides), rank))
    own = parts[mesh.get_local_rank()]
    if tuple(tensor.to_local().shape) != own.sides:
        raise NotImplementedError(f"{name} is shared unevenly: {tuple(tensor.to_local().shape)}, expected {own.sides}")
    return Stored(tensor.dtype, shape, tuple(part for part in parts if 0 not in part.sides))


def _holds(stored: Stored, rank: int) -> bool:
    return any(part.rank == rank for part in stored.parts)


def _write_file(path: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[int, bytes]:
    """A safetensors file, tensor by tensor, on the disk before this returns: its bytes and its sha256."""
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
        for piece in _pieces(text, [tensors[name] for name in order]):
            digest.update(piece)
            file.write(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.digest()


def _pieces(header: bytes, tensors: list[torch.Tensor]) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little") + header
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        whole = memoryview(flat.numpy())
        for begin in range(0, len(whole), _BLOCK):
            yield whole[begin : begin + _BLOCK]


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
                "parts": [
                    {"rank": part.rank, "offset": list(part.offset), "shape": list(part.sides)} for part in stored.parts
                ],
            }
            for name, stored in index.tensors.items()
        },
    }
    content["sha256"] = hashlib.sha256(_canonical(content)).hexdigest()
    with path.open("x", encoding="ascii") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _index(content: Mapping[str, Any]) -> Index:
    step = _whole(content["step"])
    files = {
        name: (_whole(facts["size_bytes"]), str(facts["sha256"]))
        for name, facts in content["files"].items()
        if _SHARD.fullmatch(name)
    }
    tensors = {}
    for name, facts in content["tensors"].items():
        parts = tuple(Part(_sides(p["offset"]), _sides(p["shape"]), _whole(p["rank"])) for p in facts["parts"])
        stored = Stored(_DTYPES[facts["dtype"]], _sides(facts["shape"]), parts)
        _check_parts(name, stored, files)
        tensors[name] = stored
    return Index(step, tensors, files)


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise DamagedError(f"{INDEX} has {str(value)[:40]!r} where a whole number belongs")
    return value


def _sides(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > 32:
        raise DamagedError(f"{INDEX} has no shape where one belongs")
    return tuple(_whole(value) for value in values)


def _check_parts(name: str, stored: Stored, files: Mapping[str, Any]) -> None:
    """DamagedError unless the parts lie in the tensor and have as many elements as it has."""
    covered = 0
    for part in stored.parts:
        inside = len(part.offset) == len(part.sides) == len(stored.shape) and all(
            begin + side <= whole for begin, side, whole in zip(part.offset, part.sides, stored.shape)
        )
        if not inside or _file_name(part.rank) not in files:
            raise DamagedError(f"{INDEX} puts a part of {name[:80]} where none can be")
        covered += _product(part.sides)
    if covered != _product(stored.shape):
        raise DamagedError(f"{INDEX} does not say where all of {name[:80]} lies")


def _product(sides: tuple[int, ...]) -> int:
    product = 1
    for side in sides:
        product *= side
    return product


def _what_is_wrong(path: Path, size: int, digest: str) -> str:
    """Why a file is not the one of the index; empty if it is."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            return f"{path.name} is no regular file"
        if facts.st_size != size:
            return f"{path.name} has {facts.st_size:,} bytes, {INDEX} says {size:,}"
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else None
            if found is None:  # Python 3.10
                found = hashlib.sha256()
                while block := file.read(_BLOCK):
                    found.update(block)
    except OSError as error:
        return f"{path.name}: {(error.strerror or str(error)).lower()}"
    return "" if found.hexdigest() == digest else f"{path.name} was changed: its sha256 is not the one of {INDEX}"


@torch.no_grad()
def _fill(name: str, tensor: torch.Tensor, stored: Stored, opened: Mapping[int, Any]) -> None:
    local = _local(tensor)
    offset = (0,) * local.ndim
    if local.shape != tensor.shape:
        rank = tensor.device_mesh.get_local_rank()  # type: ignore[attr-defined]
        offset = next((part.offset for part in _stored(name, tensor).parts if part.rank == rank), offset)
    for part in stored.parts:
        begins = [max(a, b) for a, b in zip(offset, part.offset)]
        ends = [min(a + m, b + n) for a, m, b, n in zip(offset, local.shape, part.offset, part.sides)]
        if any(begin >= end for begin, end in zip(begins, ends)):
            continue
        piece = opened[part.rank].get_slice(name)
        if tuple(piece.get_shape()) != part.sides or _DTYPES.get(piece.get_dtype()) != stored.dtype:
            raise DamagedError(f"{name} is not in {_file_name(part.rank)} as {INDEX} says")
        if not begins:
            local.copy_(opened[part.rank].get_tensor(name))
            continue
        there = tuple(slice(begin - b, end - b) for begin, end, b in zip(begins, ends, part.offset))
        here = tuple(slice(begin - a, end - a) for begin, end, a in zip(begins, ends, offset))
        local[here].copy_(piece[there])


# The state of a run in checkpoints: whole or absent, the last good ones kept.


KEEP = 2
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, of a parameter's shape
STEPS = "step"  # AdamW's own count, a number


class RunState:
    """Everything a run needs to go on: the student, its optimizer (AdamW), the teachers' statistics, the step.

    Random numbers and learning rates need no place: both follow from the settings and the step.
    """

    def __init__(self, student: nn.Module, optimizer: torch.optim.Optimizer, norms: nn.Module) -> None:
        self.student = student.module if isinstance(student, DistributedDataParallel) else student
        self.optimizer, self.norms = optimizer, norms

    def save(self, folder: Path, step: int, ranks: Dist) -> None:
        """Writes `folder/step-N`, renames it into place, removes all but the last two.

        JobFailed when it cannot be written (a full disk); earlier checkpoints stay as they were.
        """
        target = folder / f"step-{step:08d}"
        temporary = folder / f".step-{step:08d}.tmp"
        if target.exists():
            return
        try:
            if ranks.is_first:
                for leftover in folder.glob(".step-*.tmp"):  # of a killed run
                    shutil.rmtree(leftover, ignore_errors=True)
                temporary.mkdir(parents=True)
            ranks.wait()
            tensors = self._networks()
            for name, parameter in self._trained():
                moments = self.optimizer.state.get(parameter, {})
                tensors |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
            write(temporary, step, tensors, ranks)
            if ranks.is_first:
                temporary.rename(target)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = (error.strerror or str(error)).lower()
            raise JobFailed(
                f"cannot write the checkpoint {target} ({reason}); the last good one is "
                f"{latest(folder) or 'none'}: free some space and run the same command again"
            ) from error
        if ranks.is_first:
            for old in complete(folder)[:-KEEP]:
                shutil.rmtree(old, ignore_errors=True)
        ranks.wait()

    def restore(self, path: Path, ranks: Dist) -> int:
        """Loads `path` in place and returns its step, whatever number of processes wrote it.

        UserError for a damaged checkpoint, and for one that an earlier version wrote.
        """
        try:
            index = read_index(path)
            if f"step-{index.step:08d}" != path.name:
                raise DamagedError(f"it is of step {index.step}")
            check_files(path, index, ranks)
            moments = self._moments(index)
            wanted = self._networks()
            for name, values in moments.items():
                wanted |= {f"optimizer.{name}.{key}": value for key, value in values.items()}
            if unknown := sorted(index.tensors.keys() - wanted.keys()):
                raise DamagedError(f"it holds {unknown[0][:80]}, which this run does not have")
            read(path, index, wanted)
        except EarlierFormatError as error:
            raise UserError(
                f"the checkpoint {path} was written by an earlier version of dune, as a pickle, which is no longer "
                "read; finish the run with that version, or start it again with another -o (a finished student or "
                "matcher of that run is taken by --init)"
            ) from error
        except DamagedError as error:
            raise UserError(
                f"the checkpoint {path} cannot be read ({error}); delete it to go on from the one before"
            ) from error
        places = {name: place for place, (name, _) in enumerate(self._trained())}
        state = {places[name]: values for name, values in moments.items()}
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        return index.step

    def _networks(self) -> dict[str, torch.Tensor]:
        tensors = {f"model.{name}": value for name, value in self.student.state_dict().items()}
        return tensors | {f"norms.{name}": value for name, value in self.norms.state_dict().items()}

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        """The optimizer's parameters in its order, by name."""
        names = {id(parameter): name for name, parameter in self.student.named_parameters()}
        return [(names[id(p)], p) for group in self.optimizer.param_groups for p in group["params"]]

    def _moments(self, index: Index) -> dict[str, dict[str, torch.Tensor]]:
        """Room for the optimizer's state of those parameters that have one in the checkpoint."""
        room = {}
        for name, parameter in self._trained():
            if any(f"optimizer.{name}.{key}" in index.tensors for key in (*MOMENTS, STEPS)):
                values = {key: torch.zeros_like(parameter, requires_grad=False) for key in MOMENTS}
                room[name] = {STEPS: torch.zeros((), dtype=torch.float32), **values}
        return room


def complete(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8}", path.name))


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, if any."""
    return (complete(folder) or [None])[-1]
