"""What may be made of a pickle's data, name by name; nothing else is. The table is the allow-list of weight files."""

from __future__ import annotations

import argparse
import math
import pathlib
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from dune_cli.checkpoints.pickle_reader import Call, Name, Pairs, PickleError, Storage

MAX_DEPTH = 100
MAX_VALUES = 5_000_000  # when what is shared counts as often as it is used
SPARE_BYTES = 256 << 20
MAX_SIDE = 1 << 40
_TENSOR_TYPES = {
    f"torch.{name}"
    for name in (
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16",
        "uint8", "bool", "complex64", "complex128",
        "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
    )
}  # fmt: skip

# NumPy: its type codes, and ours
NUMBERS = {
    **{f"{kind}{size}": f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)},
    **{"b1": "?", "f2": "f2", "f4": "f4", "f8": "f8", "c8": "c8", "c16": "c16"},
}
MAX_DIMENSIONS = 32
_CODE = re.compile(r"[<>|=]?([biufcUO])(\d{0,4})")
_RECONSTRUCT = tuple(f"numpy.{package}.multiarray._reconstruct" for package in ("core", "_core"))
_SCALAR = tuple(f"numpy.{package}.multiarray.scalar" for package in ("core", "_core"))
NUMPY_NAMES = frozenset({"numpy.ndarray", "numpy.dtype", *_RECONSTRUCT, *_SCALAR})


@dataclass(frozen=True)
class StorageRecord:
    """The bytes of a storage and the type of its numbers."""

    bytes: torch.UntypedStorage
    dtype: torch.dtype
    nbytes: int


@dataclass
class _Made:
    """A finished value. values, nbytes: of it and all inside, counted as often as they are reached."""

    value: Any
    values: int
    nbytes: int
    source: Any  # keeps its id from being used again


class Builder:
    """Makes objects of a pickle's data.

    storage: gives the bytes of a pickled storage. file_bytes: of the whole file; tensors may have four times as many,
    for views may share them, and a few more. What is used in two places is one object, as in the pickle.
    """

    def __init__(self, storage: Callable[[Any], StorageRecord], file_bytes: int) -> None:
        self._storage = storage
        self._most_bytes = 4 * file_bytes + SPARE_BYTES
        self._made: dict[int, _Made] = {}
        self._begun: set[int] = set()
        self._depth = 0
        self._values, self._nbytes = 0, 0  # of what is being made

    def build(self, value: Any) -> Any:
        """The object. PickleError for a name, a shape or a nesting that is not allowed."""
        if value is None or isinstance(value, (bool, int, float, str, bytes)):
            self._count(1, 0)
            return value
        made = self._made.get(id(value))
        if made is None:
            made = self._make(value)
        self._count(made.values, made.nbytes)
        return made.value

    def _count(self, values: int, nbytes: int) -> None:
        self._values += values
        self._nbytes += nbytes
        if self._values > MAX_VALUES:
            raise PickleError(f"more than {MAX_VALUES:,} values, if what is shared counts each time")
        if self._nbytes > self._most_bytes:
            raise PickleError("tensors of many times the file's size")

    def _make(self, value: Any) -> _Made:
        if id(value) in self._begun:
            raise PickleError("a container that holds itself")
        if self._depth >= MAX_DEPTH:
            raise PickleError(f"containers nested more than {MAX_DEPTH} deep")
        outer = self._values, self._nbytes
        self._begun.add(id(value))
        self._depth += 1
        self._values, self._nbytes = 1, 0
        result = self._of(value)
        if isinstance(result, torch.Tensor) and not isinstance(value, (tuple, list, Pairs)):
            self._nbytes = result.numel() * result.element_size()
        made = _Made(result, self._values, self._nbytes, value)
        self._depth -= 1
        self._begun.discard(id(value))
        self._values, self._nbytes = outer
        self._made[id(value)] = made
        return made

    def _of(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self.build(item) for item in value)
        if isinstance(value, list):
            return [self.build(item) for item in value]
        if isinstance(value, Pairs):
            return self.dictionary(value.items)
        if isinstance(value, Storage):
            return self._storage(value.identity)
        if isinstance(value, Name):
            return _constant(value.name)
        if isinstance(value, Call) and isinstance(value.function, Name):
            if is_numpy(value):
                return build_numpy(value, self.build)
            maker = _MAKERS.get(value.function.name)
            if maker is None:
                raise PickleError(f"a call of {value.function.name}")
            return maker(self, value)
        raise PickleError(f"a {type(value).__name__} where a value belongs")

    def dictionary(self, items: list[tuple[Any, Any]]) -> dict[Any, Any]:
        """A dictionary of plain keys."""
        return {self.key(key): self.build(item) for key, item in items}

    def key(self, value: Any) -> Any:
        """A number, a text, bytes, a number type, or a short tuple of them: hashing those is quick."""
        parts = value if isinstance(value, tuple) else (value,)
        if len(parts) > 16 or not all(isinstance(p, (str, bytes, int, float, Name, type(None))) for p in parts):
            raise PickleError("a key that is neither a number nor a text")
        return self.build(value)

    def arguments(self, call: Call, least: int, most: int) -> tuple[Any, ...]:
        """The call's arguments, as they are in the pickle."""
        given = call.arguments
        if not isinstance(given, tuple) or not least <= len(given) <= most:
            raise PickleError(f"{call.function.name} with other arguments than torch.save writes")
        return given


def allowed() -> frozenset[str]:
    """Every name that a pickle may have."""
    return frozenset({*_MAKERS, *_constants(), *storage_types(), *NUMPY_NAMES})


@cache
def storage_types() -> dict[str, torch.dtype]:
    """The numbers of torch's storage classes, by the class's name."""
    kinds = {
        "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
    }  # fmt: skip
    named = {f"{module}.{kind}Storage": dtype for kind, dtype in kinds.items() for module in ("torch", "torch.cuda")}
    return {**named, "torch.storage.UntypedStorage": torch.uint8, "torch.UntypedStorage": torch.uint8}


@cache
def _constants() -> dict[str, Any]:
    """What a name alone stands for. A class is no value of weights: it becomes its name."""
    dtypes = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    classes = ("builtins.dict", "builtins.list", "builtins.int", "builtins.float", "builtins.str", "builtins.bool")
    tensors = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
    return {**dtypes, **{name: name for name in (*classes, *tensors)}}


def _constant(name: str) -> Any:
    constants = _constants()
    if name not in constants:
        raise PickleError(f"{name} where a value belongs")
    return constants[name]


def _tensor(builder: Builder, call: Call) -> torch.Tensor:
    """`_rebuild_tensor*`: (storage, offset, size, stride[, requires_grad, hooks[, dtype of _v3][, metadata]])."""
    name = call.function.name
    given = builder.arguments(call, 4 if name.endswith("_tensor") else 6, 8)
    typed = name.endswith("_v3")
    storage = builder.build(given[0])
    if not isinstance(storage, StorageRecord):
        raise PickleError("a tensor without a storage")
    dtype = builder.build(given[6]) if typed and len(given) > 6 else storage.dtype
    if not isinstance(dtype, torch.dtype) or str(dtype) not in _TENSOR_TYPES:
        raise PickleError(f"a tensor of the type {dtype}")
    if len(given) > 6 + typed and builder.build(given[6 + typed]):
        raise PickleError("a tensor that is a conjugate or negative view")
    return tensor_in(storage, dtype, *given[1:4])


def tensor_in(storage: StorageRecord, dtype: torch.dtype, offset: Any, size: Any, stride: Any) -> torch.Tensor:
    """The tensor of that size and stride (in numbers) in a storage. PickleError for one that leaves it."""
    size, stride = (tuple(v) if isinstance(v, (tuple, list)) else None for v in (_plain(size), _plain(stride)))
    if size is None or stride is None or len(size) != len(stride) or len(size) > 32:
        raise PickleError("a tensor of no shape")
    if not all(type(n) is int and 0 <= n < MAX_SIDE for n in (offset, *size, *stride)):
        raise PickleError("a tensor of no shape")
    if 0 in size:
        return torch.empty(size, dtype=dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if (last + 1) * dtype.itemsize > storage.nbytes:
        raise PickleError(f"a tensor of the shape {size} that leaves its storage of {storage.nbytes:,} bytes")
    return torch.empty(0, dtype=dtype).set_(storage.bytes, offset, size, stride)


def _plain(value: Any) -> Any:
    """The tuple in a pickled torch.Size."""
    if isinstance(value, Call) and isinstance(value.function, Name) and value.function.name == "torch.Size":
        return value.arguments[0] if isinstance(value.arguments, tuple) and value.arguments else None
    return value


def _parameter(builder: Builder, call: Call) -> torch.Tensor:
    tensor = builder.build(builder.arguments(call, 1, 4)[0])
    if not isinstance(tensor, torch.Tensor):
        raise PickleError("a parameter that is no tensor")
    return tensor


def _typed(builder: Builder, call: Call) -> torch.Tensor:
    """`_rebuild_from_type_v2`: (function, class, arguments, state). The class and its attributes are left out."""
    function, _, arguments, _ = builder.arguments(call, 4, 4)
    tensor = builder.build(Call(function, arguments))
    if not isinstance(tensor, torch.Tensor):
        raise PickleError("a tensor's class that is no tensor's")
    return tensor


def _namespace(builder: Builder, call: Call) -> argparse.Namespace:
    builder.arguments(call, 0, 0)
    made = argparse.Namespace()
    state = {} if call.state is None else builder.build(call.state)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state) or call.items:
        raise PickleError("a Namespace of no names")
    made.__dict__.update(state)
    return made


def _ordered(builder: Builder, call: Call) -> OrderedDict[Any, Any]:
    """Its attributes (a module's `_metadata`) are left out."""
    given = builder.arguments(call, 0, 1)
    pairs = [tuple(pair) for pair in given[0]] if given and isinstance(given[0], list) else []  # Python 2's
    if any(len(pair) != 2 for pair in pairs):
        raise PickleError("a dictionary of no pairs")
    return OrderedDict(builder.dictionary(pairs + call.items))


def _defaultdict(builder: Builder, call: Call) -> dict[Any, Any]:
    builder.arguments(call, 0, 1)
    return builder.dictionary(call.items)


def _counter(builder: Builder, call: Call) -> dict[Any, Any]:
    given = builder.arguments(call, 0, 1)
    if given and not isinstance(given[0], Pairs):
        raise PickleError("a Counter of no counts")
    return builder.dictionary([*(given[0].items if given else ()), *call.items])


def _set(builder: Builder, call: Call) -> set[Any]:
    given = builder.arguments(call, 0, 1)
    if given and not isinstance(given[0], list):
        raise PickleError("a set of no elements")
    return {builder.key(item) for item in (given[0] if given else ())}


def _frozenset(builder: Builder, call: Call) -> frozenset[Any]:
    return frozenset(_set(builder, call))


def _bytes(builder: Builder, call: Call) -> bytes:
    """`_codecs.encode(text, "latin1")`, bytes in protocol 2; also `bytes()` and `bytearray(text, "latin-1")`."""
    given = builder.arguments(call, 0, 2)
    if not given:
        return b""
    if len(given) == 2 and isinstance(given[0], str) and given[1] in ("latin1", "latin-1"):
        try:
            return given[0].encode("latin-1")
        except UnicodeEncodeError as error:
            raise PickleError("bytes that are none") from error
    raise PickleError(f"{call.function.name} with other arguments than a pickle of bytes has")


def _bytearray(builder: Builder, call: Call) -> bytearray:
    return bytearray(_bytes(builder, call))


def _complex(builder: Builder, call: Call) -> complex:
    real, imaginary = builder.arguments(call, 2, 2)
    if not isinstance(real, (int, float)) or not isinstance(imaginary, (int, float)):
        raise PickleError("a complex number of no numbers")
    return complex(real, imaginary)


def _size(builder: Builder, call: Call) -> torch.Size:
    (sides,) = builder.arguments(call, 1, 1)
    if not isinstance(sides, (tuple, list)) or not all(type(n) is int and 0 <= n < MAX_SIDE for n in sides):
        raise PickleError("a size of no numbers")
    return torch.Size(sides)


def _device(builder: Builder, call: Call) -> torch.device:
    given = builder.arguments(call, 1, 2)
    known = given[0] in ("cpu", "cuda", "mps", "xpu", "meta")
    if not known or not all(type(number) is int and 0 <= number < 128 for number in given[1:]):
        raise PickleError("a device of no name")
    return torch.device(*given)


def _path(builder: Builder, call: Call) -> pathlib.PurePath:
    """A pure path, which exists on every system and touches no disk."""
    given = builder.arguments(call, 0, 1000)
    if not all(isinstance(part, str) for part in given):
        raise PickleError("a path of no texts")
    return (pathlib.PureWindowsPath if "Windows" in call.function.name else pathlib.PurePosixPath)(*given)


_MAKERS: dict[str, Callable[[Builder, Call], Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.Size": _size,
    "torch.device": _device,
    "argparse.Namespace": _namespace,
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": _defaultdict,
    "collections.Counter": _counter,
    "builtins.set": _set,
    "builtins.frozenset": _frozenset,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
    "builtins.complex": _complex,
    "_codecs.encode": _bytes,
    **{
        f"{module}.{kind}{name}Path": _path
        for module in ("pathlib", "pathlib._local")
        for kind in ("", "Pure")
        for name in ("Posix", "Windows")
    },
}


# NumPy's arrays and numbers are made from a fixed list of number types; NumPy reads nothing of the pickle. A pickle may
# ask NumPy to set the state of an array or of its dtype, sizes and pointers included. Here an array is made of its
# bytes when they are as many as shape and type say. Texts and objects become plain lists.


def is_numpy(call: Call) -> bool:
    """Whether NumPy's builders take this call."""
    return isinstance(call.function, Name) and call.function.name in NUMPY_NAMES


def build_numpy(call: Call, built: Callable[[Any], Any]) -> Any:
    """An array, a number, a dtype, or the lists that stand for texts and objects.

    built: makes the values inside. PickleError for what is not on the list of types, or has other sizes than it says.
    """
    name = call.function.name
    if call.items:
        raise PickleError(f"items for {name}")
    if name in _SCALAR:
        return _scalar(call, built)
    if name == "numpy.dtype":
        code, order = _parse_dtype(call)
        return _numpy_dtype(order + code)
    if name in _RECONSTRUCT:
        return _array(call, built)
    raise PickleError(f"a call of {name}")


def _numpy_dtype(code: str) -> Any:
    import numpy as np

    if code[1:] not in NUMBERS.values():
        raise PickleError(f"a NumPy type {code!r}")
    return np.dtype(code)


def _parse_dtype(call: Any) -> tuple[str, str]:
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


def _numpy_bytes(value: Any, built: Callable[[Any], Any]) -> bytes:
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
    code, order = _parse_dtype(kind)
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
        return _nested(_texts(_numpy_bytes(content, built), int(code[1:] or 0), count, order), shape, fortran)
    return _numbers(_numpy_bytes(content, built), code, order, count).reshape(shape, order="F" if fortran else "C")


def _numbers(content: bytes, code: str, order: str, count: int) -> Any:
    import numpy as np

    kind = _numpy_dtype(order + code)
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
    code, order = _parse_dtype(call.arguments[0])
    if code == "O":
        raise PickleError("a NumPy number that is an object")
    content = _numpy_bytes(call.arguments[1], built)
    if code[0] == "U":
        return _texts(content, int(code[1:] or 0), 1, order)[0]
    return _numbers(content, code, order, 1)[0]
