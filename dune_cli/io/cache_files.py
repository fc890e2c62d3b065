"""Arrays kept between runs: one safetensors file with its schema, what it was made of, and a checksum.

A file that is missing, damaged, of another schema or made of something else is not used: the caller computes it anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.io.atomic import atomic_path
from dune_cli.io.safe_read import ARRAYS_LIMIT_BYTES, open_regular, parse_json, read_bytes

Layout = Mapping[str, tuple[str, tuple[int | str, ...]]]
_HEADER = "dune"
HEADER_LIMIT_BYTES = 100_000_000  # safetensors' own


def write_cached(path: str | Path, schema: str, made_of: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `arrays` (booleans and numbers of any shape) atomically; equal contents make equal files.

    `schema` names the layout of the arrays and its version, `made_of` what they depend on (hashes, settings).
    OSError (a full disk) passes.
    """
    from safetensors.numpy import save

    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    facts = {"schema": schema, "made_of": made_of, "sha256": _checksum(whole)}
    content = save(whole, {_HEADER: json.dumps(facts)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_cached(
    path: str | Path,
    schema: str,
    made_of: str,
    limit_bytes: int = ARRAYS_LIMIT_BYTES,
    layout: Layout | None = None,
) -> dict[str, np.ndarray] | None:
    """The arrays of a file that `write_cached` wrote with the same `schema` and `made_of`; None otherwise.

    A note says so where a file is there and is damaged, of another schema, changed since it was written, or without the
    arrays of `layout` (see `check_layout`). A file made of something else is passed over without a note.
    """
    from safetensors import deserialize

    path = Path(path)
    if not os.path.lexists(path):
        return None
    try:
        content = read_bytes(path, "a cache file", limit_bytes)
        facts = _facts(content[8 : 8 + int.from_bytes(content[:8], "little")])
        if not _fits(facts, schema, made_of, path):
            return None
        arrays = {
            name: np.frombuffer(bytearray(tensor["data"]), _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
            for name, tensor in deserialize(content)
        }
        if facts["sha256"] != _checksum(arrays):
            raise UserError("its checksum does not fit")
        if layout is not None:
            check_layout(arrays, layout)
    except Exception as error:  # damaged bytes provoke anything
        note_damaged(path, error)
        return None
    return arrays


def check_layout(arrays: Mapping[str, np.ndarray], layout: Layout) -> None:
    """Raises ValueError unless there are all arrays of `layout`: name -> (kinds, shape).

    Kinds are NumPy's letters of dtypes, such as "iu"; "f" stands for finite floats and "F" for any. A letter in a shape
    stands for one length wherever it comes.
    """
    lengths: dict[str, int] = {}
    for name, (kinds, shape) in layout.items():
        if name not in arrays:
            raise ValueError(f"it lacks {name}")
        array = arrays[name]
        fits = array.dtype.kind in kinds.lower() and array.ndim == len(shape)
        for side, length in zip(shape, array.shape) if fits else ():
            fits &= length == (lengths.setdefault(side, length) if isinstance(side, str) else side)
        if not fits:
            raise ValueError(f"{name} is {array.dtype} {array.shape}")
        if array.dtype.kind == "f" and "f" in kinds and not np.isfinite(array).all():
            raise ValueError(f"{name} holds numbers that are not finite")


def check_cached(path: str | Path, schema: str, made_of: str, limit_bytes: int = ARRAYS_LIMIT_BYTES) -> bool:
    """Whether `read_cached` would give the arrays of a file; with the same notes, and one array in memory at a time."""
    from safetensors import safe_open

    path = Path(path)
    if not os.path.lexists(path):
        return False
    try:
        with open_regular(path, "a cache file", limit_bytes) as file:
            length = int.from_bytes(file.read(8), "little")
            facts = _facts(file.read(min(length, HEADER_LIMIT_BYTES)))
        if not _fits(facts, schema, made_of, path):
            return False
        digest = hashlib.sha256()
        with safe_open(path, "np") as tensors:
            for name in sorted(tensors.keys()):
                _add(digest, name, tensors.get_tensor(name))
        if facts["sha256"] != digest.hexdigest():
            raise UserError("its checksum does not fit")
    except Exception as error:  # damaged bytes provoke anything
        note_damaged(path, error)
        return False
    return True


def note_damaged(path: Path, why: object) -> None:
    """Tells that a kept file is not used, and why."""
    text = " ".join(str(why).split())[:120]
    console.note(f"{path} is damaged ({text}); it is computed again")


def text_array(text: str) -> np.ndarray:
    """A text as the array of its UTF-8 bytes."""
    return np.frombuffer(text.encode(), np.uint8)


def text_of(array: np.ndarray) -> str:
    """The text that `text_array` made an array of. ValueError for other arrays."""
    if array.dtype != np.uint8 or array.ndim != 1:
        raise ValueError("it holds numbers where a text is needed")
    return array.tobytes().decode()


def _facts(header: bytes) -> dict[str, str]:
    facts = parse_json(parse_json(header, "its header")["__metadata__"][_HEADER], "its header")
    if not all(isinstance(facts[name], str) for name in ("schema", "made_of", "sha256")):
        raise UserError("its header is of another form")
    return facts


def _fits(facts: dict[str, str], schema: str, made_of: str, path: Path) -> bool:
    if facts["schema"] != schema:
        console.note(f"{path} was written by another version of dune; it is computed again")
        return False
    return facts["made_of"] == made_of


_DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16, "F32": np.float32, "F64": np.float64,
}  # fmt: skip


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        _add(digest, name, arrays[name])
    return digest.hexdigest()


def _add(digest: Any, name: str, array: np.ndarray) -> None:
    digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
    digest.update(memoryview(np.ascontiguousarray(array)).cast("B") if array.size else b"")
