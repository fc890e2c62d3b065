"""PyTorch's .pth and .pt files without torch.load: the pickle is read as data, and few things are made of it.

Formats: torch/serialization.py, `_save` (a zip of data.pkl and data/KEY) and `_legacy_save` (one pickle after another,
then the storages). What is made: tensors whose elements lie inside their storage, plain containers,
`argparse.Namespace`, NumPy arrays and numbers, paths. Everything else is refused by its name.
"""

from __future__ import annotations

import gc
import mmap
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch

from dune_cli.checkpoints import pickle_reader
from dune_cli.checkpoints.pickle_reader import Name, PickleError
from dune_cli.checkpoints.pickle_values import Builder, StorageRecord, allowed, storage_types
from dune_cli.checkpoints.zip_archive import ArchiveError, Member, members
from dune_cli.errors import CheckpointError

_LEGACY_PICKLES = 5  # magic number, version, machine, the object, storage keys
_LEGACY_VERSION = 1001
_SHOWN = 10


def read_zip(path: Path) -> Any:
    """The object in a zip file of torch.save. Its tensors map the file. CheckpointError: refused or damaged."""
    with _checkpoint_errors(path), _mapped(path) as data:
        found = {member.name: member for member in members(data)}
        member = next(member for name, member in found.items() if PurePath(name).name == "data.pkl")
        prefix = member.name.removesuffix("data.pkl")
        if member.size > pickle_reader.MAX_BYTES:
            raise PickleError(f"its pickle has {member.size:,} bytes; at most {pickle_reader.MAX_BYTES:,} are read")
        text = data[member.start : member.start + member.size]
        if zlib.crc32(text) != member.crc32:
            raise _DamagedError("the checksum of its pickle is wrong")
        pickle = _read(path, text)
        swapped = _is_swapped(data, found.get(f"{prefix}byteorder"))
        whole = torch.frombuffer(data, dtype=torch.uint8).untyped_storage()

        def storage(identity: Any) -> StorageRecord:
            dtype, key, numel = _storage_identity(identity, 5)
            member = found.get(f"{prefix}data/{key}")
            nbytes = numel * dtype.itemsize
            if member is None or nbytes > member.size:
                raise PickleError(f"a storage {key!r} of {nbytes:,} bytes, which the file does not have")
            piece = whole[member.start : member.start + nbytes] if nbytes else torch.UntypedStorage(0)
            if swapped or member.start % dtype.itemsize:
                piece = piece.clone()
            if swapped:
                piece.byteswap(dtype)
            return StorageRecord(piece, dtype, nbytes)

        return Builder(storage, len(data)).build(pickle.value)


def read_legacy(path: Path) -> Any:
    """The object in a file that torch.save wrote before 1.6. CheckpointError: refused or damaged."""
    with _checkpoint_errors(path), _mapped(path) as data:
        text = data[: pickle_reader.MAX_BYTES]
        magic = _read(path, text, 0, _LEGACY_PICKLES)
        version = _read(path, text, magic.end, 0)
        if version.value != _LEGACY_VERSION:
            raise PickleError(f"a version of torch.save's format other than {_LEGACY_VERSION}")
        machine = _read(path, text, version.end, 0)
        pickle = _read(path, text, machine.end, 2)
        keys = _read(path, text, pickle.end, 0)
        types = dict(_storages_in(pickle.value))
        places = _storage_offsets(data, keys, {key: dtype for key, (dtype, _) in types.items()})
        whole = torch.frombuffer(data, dtype=torch.uint8).untyped_storage()
        swapped = sys.byteorder != "little"
        pieces: dict[Any, Any] = {}

        def storage(identity: Any) -> StorageRecord:
            dtype, key, numel = _storage_identity(identity, 6)
            start, length = places[key]
            nbytes = numel * dtype.itemsize
            if nbytes > length:
                raise PickleError(f"a storage {key!r} of {nbytes:,} bytes, which the file does not have")
            if key not in pieces:
                piece = (
                    whole[start : start + length].clone() if length else torch.UntypedStorage(0)
                )  # it begins anywhere: numbers want their own alignment
                if swapped:
                    piece.byteswap(dtype)
                pieces[key] = piece
            piece = pieces[key]
            if nbytes < length:
                piece = piece[:nbytes]
            if identity[5] is not None:
                _, offset, count = identity[5]
                if not all(type(part) is int and part >= 0 for part in (offset, count)) or offset + count > numel:
                    raise PickleError(f"a view that leaves its storage {key!r}")
                begin, nbytes = offset * dtype.itemsize, count * dtype.itemsize
                piece = piece[begin : begin + nbytes]
            return StorageRecord(piece, dtype, nbytes)

        return Builder(storage, len(data)).build(pickle.value)


@dataclass
class _DamagedError(Exception):
    """A file that was cut or changed after it was written."""

    reason: str


@contextmanager
def _checkpoint_errors(path: Path) -> Iterator[None]:
    """What goes wrong, as a CheckpointError about `path`. Meanwhile Python does not look for garbage.

    A pickle of a million containers would make it look a hundred times, in vain.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    except PickleError as error:
        raise CheckpointError(f"{path} holds a pickle that is not allowed or damaged ({error})") from error
    except ArchiveError as error:
        raise CheckpointError(f"{path} is a damaged archive ({error}); fetch it again") from error
    except _DamagedError as error:
        raise CheckpointError(f"{path} is a damaged or cut PyTorch file ({error.reason}); fetch it again") from error
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, RuntimeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''}"
        raise CheckpointError(f"{path} is a damaged or cut PyTorch file ({reason}); fetch it again") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} asks for more memory than there is; it is damaged or hostile") from error
    finally:
        if collects:
            gc.enable()


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """The file's bytes, of which tensors may keep hold; what is written to them stays in this process."""
    with path.open("rb") as file:
        yield mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _read(path: Path, text: bytes, start: int = 0, following: int = 1) -> pickle_reader.Pickle:
    """A pickle; CheckpointError, with the names, if it asks for any that weights do not need.

    following: how many pickles from here on the message about a newer protocol is to read the names of.
    """
    try:
        pickle = pickle_reader.read(text, start)
    except pickle_reader.NewerProtocolError as error:
        protocol, names = pickle_reader.names_in(text[start:], following)
        raise CheckpointError(
            f"{path} refused, nothing of it was run: it was saved with pickle protocol {protocol}, safe loading "
            f"reads torch.save's own, 2; it asks for {_listed(names) or 'no names'}; have it saved as safetensors"
        ) from error
    except PickleError:
        _refuse(path, [n for n in pickle_reader.names_in(text[start:])[1] if n not in allowed()])
        raise
    _refuse(path, [name for name in pickle.names if name not in allowed()])
    return pickle


def _refuse(path: Path, names: list[str]) -> None:
    if names:
        raise CheckpointError(
            f"{path} refused, nothing of it was run: its pickle asks for {_listed(sorted(names))}, "
            "which weights do not need; get the file from its publisher or as safetensors"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:200] for name in names[:_SHOWN]) + more


def _is_swapped(data: mmap.mmap, order: Member | None) -> bool:
    if order is None:
        return sys.byteorder != "little"
    word = data[order.start : order.start + min(order.size, 10)]
    if word not in (b"little", b"big"):
        raise PickleError(f"a byte order {word!r}")
    return word.decode() != sys.byteorder


def _storage_identity(identity: Any, length: int) -> tuple[torch.dtype, Any, int]:
    """(number type, key, numbers) of a storage."""
    if not isinstance(identity, tuple) or len(identity) != length or identity[0] not in ("storage", b"storage"):
        raise PickleError("a reference to something that is no storage")
    _, kind, key, _, numel = identity[:5]
    if not isinstance(kind, Name) or kind.name not in storage_types():
        raise PickleError("a storage of no number type")
    if not isinstance(key, (str, int)) or type(numel) is not int or not 0 <= numel < 1 << 48:
        raise PickleError("a storage of no size")
    return storage_types()[kind.name], key, numel


def _storages_in(value: Any) -> Iterator[tuple[Any, tuple[torch.dtype, int]]]:
    """Every storage that a pickle names, once: its key, number type and numbers."""
    seen: set[int] = set()
    todo = [value]
    while todo:
        item = todo.pop()
        if id(item) in seen or not isinstance(
            item, (tuple, list, pickle_reader.Pairs, pickle_reader.Call, pickle_reader.Storage)
        ):
            continue
        seen.add(id(item))
        if isinstance(item, pickle_reader.Storage):
            dtype, key, numel = _storage_identity(item.identity, 6)
            yield key, (dtype, numel)
        elif isinstance(item, (tuple, list)):
            todo.extend(item)
        elif isinstance(item, pickle_reader.Pairs):
            todo.extend(item.items)
        else:
            todo.extend((item.arguments, item.state, item.items))


def _storage_offsets(
    data: mmap.mmap, keys: pickle_reader.Pickle, types: dict[Any, torch.dtype]
) -> dict[Any, tuple[int, int]]:
    """Where the storages lie: key -> (first byte, bytes). Each begins with its number of elements."""
    if not isinstance(keys.value, list) or {*types} - {*keys.value}:
        raise PickleError("a storage that the file does not have")
    places, at = {}, keys.end
    for key in keys.value:
        if key not in types or key in places:
            raise PickleError(f"a storage {key!r} that nothing is made of")
        (numel,) = struct.unpack_from("<q", data, at)
        length = numel * types[key].itemsize
        if numel < 0 or at + 8 + length > len(data):
            raise _DamagedError("it ends inside a tensor")
        places[key] = (at + 8, length)
        at += 8 + length
    return places
