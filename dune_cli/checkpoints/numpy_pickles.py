"""NumPy's arrays and numbers out of a pickle, made from a fixed list of number types: NumPy reads none of it.

A pickle may ask NumPy to set the state of an array or of its dtype, and NumPy believes it: sizes, pointers to objects.
Here an array is made of its bytes when they are as many as shape and type say. Texts and objects become plain lists.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from dune_cli.checkpoints.pickles import Call, Name, PickleError

NUMBERS = {
    **{f"{kind}{size}": f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)},
    **{"b1": "?", "f2": "f2", "f4": "f4", "f8": "f8", "c8": "c8", "c16": "c16"},
}
MAX_DIMENSIONS = 32
_CODE = re.compile(r"[<>|=]?([biufcUO])(\d{0,4})")
_RECONSTRUCT = tuple(f"numpy.{package}.multiarray._reconstruct" for package in ("core", "_core"))
_SCALAR = tuple(f"numpy.{package}.multiarray.scalar" for package in ("core", "_core"))
NAMES = frozenset({"numpy.ndarray", "numpy.dtype", *_RECONSTRUCT, *_SCALAR})


def is_numpy(call: Call) -> bool:
    """Whether NumPy's builders take this call."""
    return isinstance(call.function, Name) and call.function.name in NAMES


def build(call: Call, built: Callable[[Any], Any]) -> Any:
    """An array, a number, a dtype, or the lists that stand for texts and objects.

    built: makes the values inside. PickleError for what is not on the list of types, or has other sizes than it says.
    """
    name = call.function.name
    if call.items:
        raise PickleError(f"items for {name}")
    if name in _SCALAR:
        return _scalar(call, built)
    if name == "numpy.dtype":
        code, order = _dtype(call)
        return _numpy(order + code)
    if name in _RECONSTRUCT:
        return _array(call, built)
    raise PickleError(f"a call of {name}")


def _numpy(code: str) -> Any:
    import numpy as np

    if code[1:] not in NUMBERS.values():
        raise PickleError(f"a NumPy type {code!r}")
    return np.dtype(code)


def _dtype(call: Any) -> tuple[str, str]:
    """(code, byte order) of a pickled dtype: "f8" and "<"; "U4" and "O" for texts and objects."""
    if not isinstance(call, Call) or not isinstance(call.function, Name) or call.function.name != "numpy.dtype":
        raise PickleError("a NumPy array without a type")
    arguments = call.arguments
    if not isinstance(arguments, tuple) or not arguments or not isinstance(arguments[0], str) or call.items:
        raise PickleError("a NumPy type that is no type")
    found = _CODE.fullmatch(arguments[0])
    code = "" if found is None else "O" if found[1] == "O" else found[1] + found[2]
    if found is None or (code not in NUMBERS and found[1] not in "UO"):
        raise PickleError(f"the NumPy type {arguments[0][:40]!r}; weights hold numbers")
    state = (3, "|", None, None, None, -1, -1, 0) if call.state is None else call.state
    if not isinstance(state, tuple) or len(state) != 8 or state[1] not in ("<", ">", "|", "="):
        raise PickleError(f"a state of the NumPy type {code} that no number has")
    size = 4 * int(found[2] or 0) if found[1] == "U" else 8 if code == "O" else int(found[2])
    flags = {"U": (0, 8), "O": (0, 63)}.get(found[1], (0,))
    if any(part is not None for part in state[2:5]) or state[5] not in (-1, size) or state[7] not in flags:
        raise PickleError(f"a state of the NumPy type {code} that no number has")
    order = arguments[0][0] if arguments[0][0] in "<>" else state[1] if state[1] in "<>" else "="
    return NUMBERS.get(code, code), order


def _bytes(value: Any, built: Callable[[Any], Any]) -> bytes:
    content = built(value)
    if isinstance(content, str):  # Python 2's bytes, when they happen to be text
        content = content.encode("utf-8")
    if not isinstance(content, bytes):
        raise PickleError("a NumPy array without bytes")
    return content


def _array(call: Call, built: Callable[[Any], Any]) -> Any:
    made = call.arguments
    if not isinstance(made, tuple) or not made or not isinstance(made[0], Name) or made[0].name != "numpy.ndarray":
        raise PickleError("a NumPy array of another class")
    state = call.state
    if not isinstance(state, tuple) or len(state) != 5:
        raise PickleError("a NumPy array without its state")
    _, shape, kind, fortran, content = state
    code, order = _dtype(kind)
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS or not isinstance(fortran, bool):
        raise PickleError("a NumPy array of no shape")
    if not all(type(side) is int and 0 <= side < 1 << 40 for side in shape):
        raise PickleError("a NumPy array of no shape")
    count = math.prod(shape)
    if code == "O":
        if not isinstance(content, list) or len(content) != count:
            raise PickleError("a NumPy array of objects that has more or fewer than its shape")
        return _nested([built(item) for item in content], shape, fortran)
    if code[0] == "U":
        return _nested(_texts(_bytes(content, built), int(code[1:] or 0), count, order), shape, fortran)
    return _numbers(_bytes(content, built), code, order, count).reshape(shape, order="F" if fortran else "C")


def _numbers(content: bytes, code: str, order: str, count: int) -> Any:
    import numpy as np

    kind = _numpy(order + code)
    if len(content) != count * kind.itemsize:
        raise PickleError(f"a NumPy array of {len(content)} bytes where {count} numbers of {kind.itemsize} are said")
    if code == "?":
        return np.frombuffer(content, np.uint8) != 0  # any other byte is no bool
    return np.frombuffer(content, kind).copy()


def _texts(content: bytes, length: int, count: int, order: str) -> list[str]:
    if len(content) != 4 * length * count:
        raise PickleError("NumPy texts of other lengths than they say")
    coding = "utf-32-be" if order == ">" else "utf-32-le"
    text = content.decode(coding, "replace")
    if len(text) != length * count:
        raise PickleError("NumPy texts that are no texts")
    return [text[at * length : (at + 1) * length].rstrip("\0") for at in range(count)] if length else [""] * count


def _nested(flat: list[Any], shape: tuple[int, ...], fortran: bool) -> Any:
    """The values as lists in lists; the value itself for no dimension."""
    if fortran and len(shape) > 1:
        raise PickleError("a NumPy array of texts or objects in Fortran's order")
    for side in reversed(shape[1:]):
        flat = [flat[at : at + side] for at in range(0, len(flat), side)] if side else []
    return flat if shape else flat[0]


def _scalar(call: Call, built: Callable[[Any], Any]) -> Any:
    if not isinstance(call.arguments, tuple) or len(call.arguments) != 2 or call.state is not None:
        raise PickleError("a NumPy number of no value")
    code, order = _dtype(call.arguments[0])
    if code == "O":
        raise PickleError("a NumPy number that is an object")
    content = _bytes(call.arguments[1], built)
    if code[0] == "U":
        return _texts(content, int(code[1:] or 0), 1, order)[0]
    return _numbers(content, code, order, 1)[0]
