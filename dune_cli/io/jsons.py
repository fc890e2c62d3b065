"""JSON for people and programs: UTF-8, matrices one row a line, numpy values converted, NaN as null."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from dune_cli.io.atomic import atomic_path


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as `dumps` gives it."""
    with atomic_path(path) as temporary:
        temporary.write_text(dumps(value) + "\n", encoding="utf-8")


@contextmanager
def json_lines(path: str | Path) -> Iterator[Callable[[Any], None]]:
    """A function that adds a value to a JSON Lines file as one line of plain ASCII, as `dumps` converts it.

    The file takes its name at the end; after a failure there is none.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii", newline="\n") as file:
        yield lambda value: print(json_line(value), file=file)


def json_line(value: Any) -> str:
    """`value` as one line of plain ASCII, converted as by `dumps`."""
    return json.dumps(_plain(value), allow_nan=False)


def dumps(value: Any) -> str:
    """JSON text with two spaces of indent and lists of plain values on one line. Keys keep their order.

    numpy arrays, scalars and paths are converted; NaN and infinities become null, which JSON has instead. TypeError
    for other types and for keys that are no strings.
    """
    return _render(_plain(value), "")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            raise TypeError(f"a JSON key must be a string, got {wrong!r}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(_shortest(np.asarray(value)).tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _shortest(array: np.ndarray) -> np.ndarray:
    """float16 and float32 values as the shortest decimals that mean them: 0.1, not 0.10000000149."""
    return array.astype(str).astype(np.float64) if array.dtype in (np.float16, np.float32) else array


def _render(value: Any, indent: str) -> str:
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        items = [f"{deeper}{_scalar(key)}: {_render(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return "[\n" + ",\n".join(deeper + _render(item, deeper) for item in value) + f"\n{indent}]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode()  # file names need not be UTF-8
