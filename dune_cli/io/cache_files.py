"""Arrays kept between runs: one safetensors file with its schema, what it was made of, and a checksum.

A file that is missing, damaged, of another schema or made of something else is not used: the caller computes it anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.io.atomic import atomic_path
from dune_cli.io.safe_read import ARRAYS_LIMIT_BYTES, parse_json, read_bytes

_HEADER = "dune"


def write_cached(path: str | Path, schema: str, made_of: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `arrays` (booleans and numbers of any shape) atomically; equal contents make equal files.

    `schema` names the layout of the arrays and its version, `made_of` what they depend on (hashes, settings).
    OSError (a full disk) passes.
    """
    from safetensors.numpy import save

    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    facts = {"schema": schema, "made_of": made_of, "sha256": _checksum(whole)}
    content = save(whole, {_HEADER: json.dumps(facts)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_cached(
    path: str | Path, schema: str, made_of: str, limit_bytes: int = ARRAYS_LIMIT_BYTES
) -> dict[str, np.ndarray] | None:
    """The arrays of a file that `write_cached` wrote with the same `schema` and `made_of`; None otherwise.

    A note says so where a file is there and is damaged, of another schema, or changed since it was written. A file
    made of something else is passed over without a note.
    """
    from safetensors import deserialize

    path = Path(path)
    if not path.exists():
        return None
    try:
        content = read_bytes(path, "a cache file", limit_bytes)
        length = int.from_bytes(content[:8], "little")
        header = parse_json(content[8 : 8 + length], str(path))
        facts = parse_json(header["__metadata__"][_HEADER], str(path))
        if facts["schema"] != schema:
            console.note(f"{path} was written by another version of dune; it is computed again")
            return None
        if facts["made_of"] != made_of:
            return None
        arrays = {
            name: np.frombuffer(bytearray(tensor["data"]), _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
            for name, tensor in deserialize(content)
        }
        if facts["sha256"] != _checksum(arrays):
            raise UserError("its checksum does not fit")
    except Exception as error:  # damaged bytes provoke anything
        console.note(f"{path} is damaged ({str(error)[:120]}); it is computed again")
        return None
    return arrays


_DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16, "F32": np.float32, "F64": np.float64,
}  # fmt: skip


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(memoryview(np.ascontiguousarray(array)).cast("B") if array.size else b"")
    return digest.hexdigest()
