"""JSON files: written with numpy values converted, and read field by field with their types."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np

from dune_cli.errors import DuneError, UserError
from dune_cli.io.outputs import atomic_path
from dune_cli.io.safe_read import quoted, shown


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as `dumps` gives it."""
    with atomic_path(path) as temporary:
        temporary.write_text(dumps(value) + "\n", encoding="utf-8")


@contextmanager
def json_lines(path: str | Path) -> Iterator[Callable[[Any], None]]:
    """A function that adds a value to a JSON Lines file, one line of ASCII each, converted as by `dumps`.

    The file is renamed to `path` at the end; after a failure there is none.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii", newline="\n") as file:
        yield lambda value: print(json_line(value), file=file)


def json_line(value: Any) -> str:
    """`value` as one line of ASCII, converted as by `dumps`."""
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
    """float16 and float32 values as the shortest decimals that round to them: 0.1, not 0.10000000149."""
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


_Kind = TypeVar("_Kind")
_WORDS = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
}
REQUIRED: Any = object()


class Fields(Mapping[str, Any]):
    """A JSON object whose fields are read with their types.

    `where` names it in messages, such as "scene.json: cameras[2]". Every accessor raises `error` for a field of another
    type and for a missing field without a `default`. With a default, null counts as missing.
    """

    def __init__(self, value: Any, where: str, error: type[DuneError] = UserError) -> None:
        if not isinstance(value, dict):
            raise error(f"{where} is {_kind(value)}; an object is needed")
        self.value, self.where, self.error = value, where, error

    def __getitem__(self, name: str) -> Any:
        return self.value[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.value)

    def __len__(self) -> int:
        return len(self.value)

    def text(self, name: str, default: Any = REQUIRED) -> str:
        """A string."""
        return self._typed(name, str, default)

    def flag(self, name: str, default: Any = REQUIRED) -> bool:
        """true or false."""
        return self._typed(name, bool, default)

    def integer(self, name: str, default: Any = REQUIRED, low: int | None = None, high: int | None = None) -> int:
        """A whole number in [low, high]."""
        value = self._typed(name, int, default)
        return value if value is default else self._within(name, value, low, high)

    def number(self, name: str, default: Any = REQUIRED, low: float | None = None, high: float | None = None) -> float:
        """A finite number in [low, high]."""
        value = self._typed(name, float, default)
        return value if value is default else self._within(name, float(value), low, high)

    def items_of(self, name: str, default: Any = REQUIRED) -> list[Any]:
        """A list."""
        return self._typed(name, list, default)

    def object(self, name: str, default: Any = REQUIRED) -> Fields:
        """An object."""
        value = self._typed(name, dict, default)
        return value if value is default else Fields(value, f"{self.where}: {shown(name)}", self.error)

    def objects(self, name: str, default: Any = REQUIRED) -> list[Fields]:
        """A list of objects."""
        value = self._typed(name, list, default)
        if value is default:
            return value
        return [Fields(item, f"{self.where}: {name}[{i}]", self.error) for i, item in enumerate(value)]

    def array(self, name: str, shape: Sequence[int | None], default: Any = REQUIRED) -> np.ndarray:
        """Nested lists of finite numbers as float64 of `shape`, where None stands for any length."""
        value = self._typed(name, list, default)
        return value if value is default else finite_array(value, shape, f"{self.where}: {name}", self.error)

    def _typed(self, name: str, kind: type[_Kind], default: Any) -> _Kind:
        value = self.value.get(name)
        if value is None:
            if default is not REQUIRED:
                return default
            raise self.error(f"{self.where} has no {quoted(name)}; {_WORDS[kind]} is needed there")
        right = isinstance(value, (int, float) if kind is float else kind)
        if not right or (isinstance(value, bool) and kind is not bool):
            raise self.error(f"{self.where}: {shown(name)} is {_kind(value)}; {_WORDS[kind]} is needed")
        return value

    def _within(self, name: str, value: Any, low: float | None, high: float | None) -> Any:
        inside = math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high)
        if not inside:
            span = f"from {'-inf' if low is None else low} to {'inf' if high is None else high}"
            raise self.error(f"{self.where}: {name} is {value:g}; allowed: {span}")
        return value


def finite_array(value: Any, shape: Sequence[int | None], where: str, error: type[DuneError] = UserError) -> np.ndarray:
    """Nested lists (or an array) of finite numbers as a float64 array of `shape`, where None stands for any length.

    Raises `error` for other shapes, ragged lists, texts, true and false, and numbers that are not finite in float64.
    """
    wanted = " x ".join("any" if side is None else str(side) for side in shape)
    try:
        plain = value.dtype.kind in "fiu" if isinstance(value, np.ndarray) else _plain_numbers(value)
        array = np.array(value, np.float64) if plain else None
    except (ValueError, TypeError, OverflowError, MemoryError):
        array = None
    fits = array is not None and array.ndim == len(shape) and all(s in (None, n) for s, n in zip(shape, array.shape))
    if array is None or not fits:
        raise error(f"{where} is not a list of {wanted} numbers")
    if not np.isfinite(array).all():
        raise error(f"{where} holds numbers that are not finite; give finite ones")
    return array


def _plain_numbers(value: Any) -> bool:
    """Whether nested lists hold numbers alone; NumPy would take texts and booleans for numbers."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, (list, tuple)):
            stack.extend(item)
        elif isinstance(item, bool) or not isinstance(item, (int, float)):
            return False
    return True


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return _WORDS.get(type(value), f"a {type(value).__name__}")
