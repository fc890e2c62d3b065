"""Typed access to JSON objects: each field is what it must be, or one sentence says where it is not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dune_cli.errors import DuneError, UserError
from dune_cli.io.texts import quoted, shown

if TYPE_CHECKING:
    import numpy as np

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

    `where` names it in messages, such as "scene.json: cameras[2]". Every accessor raises `error` for a field of
    another type, and for a missing field without a `default`. A null counts as missing where a default is given.
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
    import numpy as np

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
