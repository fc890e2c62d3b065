"""Reads a pickle as data: what it names is written down and never looked up, what it calls is never called.

The reader knows the instructions that torch.save writes (protocol 2) and makes plain values out of them; a class or
function becomes a `Name`, a call a `Call`, a dictionary a `Pairs`, a tensor's storage a `Storage`. `built` turns those
few that weights need into objects. Instructions: CPython's Lib/pickletools.py.
"""

from __future__ import annotations

import io
import pickletools
import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from dataclasses import dataclass, field
from typing import Any

MAX_BYTES = 128 << 20  # a pickle of published weights has less than 2 MB: tensors lie outside of it
MAX_INSTRUCTIONS = 1_000_000  # a tensor takes about 25
MAX_SCANNED = 200_000  # instructions of a pickle that is refused anyway, for the names in the message
_STRINGS = {"UNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"}


class PickleError(ValueError):
    """A pickle that is damaged, or that asks for what `read` does not do."""


class NewerProtocolError(PickleError):
    """A pickle of a protocol above 2."""


@dataclass(slots=True, eq=False)
class Name:
    """A class or function, as "module.name"."""

    name: str


@dataclass(slots=True, eq=False)
class Pairs:
    """A dictionary, in the order of its items; a key may come twice."""

    items: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Call:
    """`function(*arguments)`, then `state` set on it, then `items` put into it. `function`: a Name, if it is sane."""

    function: Any
    arguments: Any
    state: Any = None
    items: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Storage:
    """What torch.save puts in the place of a tensor's storage."""

    identity: Any


@dataclass(frozen=True)
class Pickle:
    """What `read` found: the value, the names that it asks for, and where in the data it ends."""

    value: Any
    names: frozenset[str]
    end: int


def read(data: bytes, start: int = 0) -> Pickle:
    """The pickle that begins at `start`. PickleError for damage and for more than weights need."""
    reader = _Reader(data, start)
    try:
        return reader.run()
    except (IndexError, struct.error, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise PickleError(f"damaged at byte {reader.at}: {type(error).__name__}") from error


class _Reader:
    def __init__(self, data: bytes, start: int) -> None:
        self.data, self.at = data, start
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.names: dict[str, Name] = {}

    def run(self) -> Pickle:
        data = self.data
        for _ in range(MAX_INSTRUCTIONS):
            code = data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                return Pickle(self.stack.pop(), frozenset(self.names), self.at)
            step = _STEPS.get(code)
            if step is None:
                raise PickleError(f"instruction {chr(code)!r} at byte {self.at - 1}, which torch.save does not write")
            step(self)
        raise PickleError(f"more than {MAX_INSTRUCTIONS:,} instructions")

    def take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        if len(piece) < count:
            raise IndexError
        self.at += count
        return piece

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 1000)
        if end < 0:
            raise IndexError
        text = self.data[self.at : end].decode("utf-8")
        self.at = end + 1
        return text

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def tuple_since_mark(self) -> None:
        items = tuple(self.since_mark())
        self.stack.append(items)

    def protocol(self) -> None:
        if (protocol := self.take(1)[0]) > 2:
            raise NewerProtocolError(f"pickle protocol {protocol}")

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def named(self) -> None:
        module, name = self.line(), self.line()
        if (module, name) in NAME_MAPPING:  # Python 2's
            module, name = NAME_MAPPING[(module, name)]
        else:
            module = IMPORT_MAPPING.get(module, module)
        full = f"{module}.{name}"
        self.stack.append(self.names.setdefault(full, Name(full)))

    def call(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = Call(self.stack[-1], arguments)

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, Call) or target.state is not None:
            raise PickleError(f"a state for what has none, at byte {self.at - 1}")
        target.state = state

    def put_items(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, (Pairs, Call)) or len(flat) % 2:
            raise PickleError(f"items for what is no dictionary, at byte {self.at - 1}")
        target.items.extend(zip(flat[::2], flat[1::2]))

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.put_items([key, value])

    def put_elements(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise PickleError(f"elements for what is no list, at byte {self.at - 1}")
        target.extend(items)

    def append(self) -> None:
        self.put_elements([self.stack.pop()])

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[len(self.stack) - count :] = [tuple(self.stack[len(self.stack) - count :])]

    def text(self) -> None:
        self.stack.append(str(self.take(self.number("<I")), "utf-8", "surrogatepass"))

    def old_text(self, form: str) -> None:
        raw = self.take(self.number(form))
        try:
            self.stack.append(raw.decode("utf-8"))  # Python 2's text
        except UnicodeDecodeError:
            self.stack.append(raw)

    def integer(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.take(1)[0]), "little", signed=True))

    def remember(self, form: str) -> None:
        self.memo[self.number(form)] = self.stack[-1]


_STEPS: dict[int, Any] = {
    ord(code): step
    for code, step in {
        "\x80": _Reader.protocol,
        "(": _Reader.mark,
        "c": _Reader.named,
        "R": _Reader.call,
        "\x81": _Reader.call,
        "b": _Reader.build,
        "Q": lambda r: r.stack.append(Storage(r.stack.pop())),
        "s": _Reader.set_item,
        "u": lambda r: r.put_items(r.since_mark()),
        "a": _Reader.append,
        "e": lambda r: r.put_elements(r.since_mark()),
        ")": lambda r: r.stack.append(()),
        "t": _Reader.tuple_since_mark,
        "\x85": lambda r: r.tuple_of(1),
        "\x86": lambda r: r.tuple_of(2),
        "\x87": lambda r: r.tuple_of(3),
        "]": lambda r: r.stack.append([]),
        "}": lambda r: r.stack.append(Pairs()),
        "N": lambda r: r.stack.append(None),
        "\x88": lambda r: r.stack.append(True),
        "\x89": lambda r: r.stack.append(False),
        "K": lambda r: r.stack.append(r.take(1)[0]),
        "M": lambda r: r.stack.append(r.number("<H")),
        "J": lambda r: r.stack.append(r.number("<i")),
        "\x8a": _Reader.integer,
        "G": lambda r: r.stack.append(r.number(">d")),
        "X": _Reader.text,
        "U": lambda r: r.old_text("<B"),
        "T": lambda r: r.old_text("<I"),
        "q": lambda r: r.remember("<B"),
        "r": lambda r: r.remember("<I"),
        "h": lambda r: r.stack.append(r.memo[r.number("<B")]),
        "j": lambda r: r.stack.append(r.memo[r.number("<I")]),
        "0": lambda r: r.stack.pop(),
    }.items()
}


def names_in(data: bytes, pickles: int = 1) -> tuple[int, list[str]]:
    """The highest protocol and the sorted `module.name` globals of so many pickles of any protocol, one after another.

    For the sentence that refuses a pickle that `read` does not read. A damaged one gives what comes before the damage.
    A name from the pickle's memo is read as the latest string.
    """
    file = io.BytesIO(data)
    protocol, names, strings, seen = 0, set(), ["?", "?"], 0
    try:
        for _ in range(pickles):
            for opcode, argument, _ in pickletools.genops(file):
                seen += 1
                if seen > MAX_SCANNED:
                    return protocol, sorted(names)
                if opcode.name == "PROTO":
                    protocol = max(protocol, argument)
                elif opcode.name in ("GLOBAL", "INST"):
                    names.add(argument.replace(" ", ".", 1))
                elif opcode.name == "STACK_GLOBAL":
                    names.add(".".join(strings[-2:]))
                elif opcode.name in _STRINGS:
                    strings = [strings[-1], str(argument)[:200]]
    except (ValueError, OverflowError, MemoryError):  # damage; UnicodeDecodeError is a ValueError
        pass
    return protocol, sorted(names)
