"""Weight files that want to run something, to break the memory or to eat it: seeded, by kind. For test_hostile.py."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

MAGIC = 0x1950A86A20F9469CFC6C
NAMES = {  # module: what it must not be asked for
    "os": "system popen remove kill abort _exit",
    "posix": "system execv",
    "subprocess": "Popen call check_output",
    "builtins": "eval exec open __import__ getattr compile",
    "__builtin__": "eval execfile",
    "io": "open",
    "importlib": "import_module",
    "runpy": "run_path run_module",
    "ctypes": "CDLL memmove",
    "shutil": "rmtree copy",
    "pathlib": "Path.touch Path",
    "torch.hub": "load",
    "torch": "load save",
    "torch.serialization": "load",
    "torch.jit": "load",
    "torch._C": "import_ir_module",
    "torch.utils.cpp_extension": "load",
    "torch.ops": "load_library",
    "numpy": "load save",
    "numpy.ctypeslib": "load_library",
    "numpy.lib.npyio": "load",
    "numpy.testing._private.utils": "runstring",
    "pickle": "loads",
    "_pickle": "loads",
    "marshal": "loads",
    "types": "FunctionType CodeType",
    "functools": "partial",
    "operator": "attrgetter methodcaller",
    "webbrowser": "open",
    "pty": "spawn",
    "code": "interact",
    "socket": "create_connection",
    "urllib.request": "urlretrieve",
    "http.client": "HTTPConnection",
    "timeit": "timeit",
    "cProfile": "run",
    "pdb": "run",
    "bdb": "Bdb.run",
    "logging.config": "dictConfig",
    "distutils.spawn": "spawn",
    "multiprocessing.util": "spawnv_passfds",
    "site": "addsitedir",
    "zipimport": "zipimporter",
    "sys": "exit setrecursionlimit",
    "signal": "raise_signal",
    "faulthandler": "_sigsegv",
    "tempfile": "mkstemp",
    "sqlite3": "connect",
    "gc": "get_objects",
    "collections": "namedtuple",
    "dune_cli.cli": "main",
    "argparse": "FileType",
    "torch.nn.modules.linear": "Linear",
    "torch.storage": "_load_from_bytes",
    "torch._utils": "_rebuild_sparse_tensor _rebuild_qtensor _rebuild_nested_tensor "
    "_rebuild_wrapper_subclass _rebuild_meta_tensor_no_storage _rebuild_device_tensor_from_numpy",
    "numpy.core.multiarray": "fromstring",
    "numpy.lib.stride_tricks": "as_strided",
}
CALLS = [f"{module} {name}" for module, names in NAMES.items() for name in names.split()]


class Pickle:
    """Writes a pickle instruction by instruction (protocol 2)."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x02")

    def raw(self, code: bytes) -> Pickle:
        self.out += code
        return self

    def name(self, dotted: str) -> Pickle:
        module, name = dotted.split(" ")
        return self.raw(b"c" + module.encode() + b"\n" + name.encode() + b"\n")

    def value(self, value: Any) -> Pickle:
        if value is None or isinstance(value, bool):
            self.raw({None: b"N", True: b"\x88", False: b"\x89"}[value])
        elif isinstance(value, int):
            if -(2**31) <= value < 2**31:
                self.raw(b"J" + struct.pack("<i", value))
            else:
                packed = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
                self.raw(b"\x8a" + bytes([len(packed)]) + packed)
        elif isinstance(value, float):
            self.raw(b"G" + struct.pack(">d", value))
        elif isinstance(value, str):
            text = value.encode("utf-8", "surrogatepass")
            self.raw(b"X" + struct.pack("<I", len(text)) + text)
        elif isinstance(value, bytes):
            self.call("_codecs encode", value.decode("latin1"), "latin1")
        elif isinstance(value, tuple):
            self.raw(b"(")
            for item in value:
                self.value(item)
            self.raw(b"t")
        elif isinstance(value, list):
            self.raw(b"](")
            for item in value:
                self.value(item)
            self.raw(b"e")
        elif isinstance(value, dict):
            self.raw(b"}(")
            for key, item in value.items():
                self.value(key).value(item)
            self.raw(b"u")
        elif callable(value):
            value(self)
        else:
            raise TypeError(type(value))
        return self

    def call(self, dotted: str, *arguments: Any) -> Pickle:
        return self.name(dotted).value(tuple(arguments)).raw(b"R")

    def build(self, state: Any) -> Pickle:
        return self.value(state).raw(b"b")

    def end(self) -> bytes:
        return bytes(self.out) + b"."


def storage(numel: Any, key: Any = "0", kind: str = "torch FloatStorage") -> Callable[[Pickle], Any]:
    """The reference to a storage."""
    return lambda p: p.raw(b"(").value("storage").name(kind).value(key).value("cpu").value(numel).raw(b"tQ")


def tensor(
    numel: Any, offset: Any, size: Any, stride: Any, function: str = "_rebuild_tensor_v2", **how: Any
) -> Callable[[Pickle], Any]:
    """A tensor in a storage."""
    hooks = lambda p: p.call("collections OrderedDict")  # noqa: E731
    return lambda p: p.call(f"torch._utils {function}", storage(numel, **how), offset, size, stride, False, hooks)


def packed(text: bytes, data: dict[str, bytes] | None = None) -> bytes:
    """The zip file of torch.save around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", text)
        archive.writestr("archive/byteorder", "little")
        for key, content in (data or {"0": bytes(64)}).items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def legacy(text: bytes, keys: Any = (), rest: bytes = b"") -> bytes:
    """The older format around a pickle."""
    start = b"".join(pickle.dumps(v, 2) for v in (MAGIC, 1001, {"little_endian": True}))
    return start + text + pickle.dumps(list(keys), 2) + rest


def saved(tree: Any, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def tree_with(payload: Any) -> bytes:
    return Pickle().value({"model": {"w": payload}}).end()


def calls(rng: random.Random, flag: str) -> bytes:
    """A call of something that a file may not call."""
    dotted = rng.choice(CALLS)
    arguments = rng.choice(
        ((f"touch {flag}",), (flag, "w"), (f"open({flag!r},'w')",), ([f"/usr/bin/touch {flag}"],), ())
    )
    way = rng.randrange(5)
    p = Pickle()
    if way == 0:
        p.value({"model": lambda q: q.call(dotted, *arguments)})
    elif way == 1:
        p.value({"model": {}, "args": lambda q: q.name(dotted).value(arguments).raw(b"\x81")})
    elif way == 2:  # INST
        module, name = dotted.split(" ")
        p.raw(b"(").value(arguments[0] if arguments else 1).raw(f"i{module}\n{name}\n".encode())
    elif way == 3:  # OBJ
        p.raw(b"(").name(dotted).value(flag).raw(b"o")
    else:  # as a dictionary's key, inside a Namespace
        p.name("argparse Namespace").raw(b")\x81").value(
            {"x": lambda q: q.raw(b"}").call(dotted, *arguments).value(1).raw(b"s")}
        )
        p.raw(b"b")
    text = p.end()
    if rng.random() < 0.2:  # a newer protocol
        module, name = dotted.split(" ")
        short = lambda s: b"\x8c" + bytes([len(s)]) + s.encode()  # noqa: E731
        text = b"\x80\x04" + short(module) + short(name) + b"\x93" + short(flag[-200:]) + b"\x85R."
    return packed(text) if rng.random() < 0.7 else legacy(text)


def dtypes(rng: random.Random, flag: str) -> bytes:
    """A dtype that is changed after an array was made of it, or lies about its size, its fields, its flags."""
    code = rng.choice(("V8", "S8", "O", "f8", "i4", "U2", "M8", "m8", "V0", "O8", "f8,f8", "(2,)f8", "|b1", "f2"))
    size = rng.choice((8, 1 << 30, -8, 0, 1 << 62, 2**63 - 1))
    flags = rng.choice((0, 63, 27, 255, -1))

    def dtype(p: Pickle) -> Pickle:
        return p.call("numpy dtype", code, False, True).raw(b"q\x05")

    def field(p: Pickle) -> Pickle:
        return p.value({"a": (lambda q: q.call("numpy dtype", rng.choice(("O", "f8", "V8")), False, True), size)})

    shape = rng.choice(((4,), (1,), (1 << 40,), (-1,), (2, 1 << 33), ()))
    content = b"A" * rng.choice((8, 32, 0))

    def array(p: Pickle) -> Pickle:
        p.call("numpy.core.multiarray _reconstruct", lambda q: q.name("numpy ndarray"), (0,), b"b")
        return p.build((1, shape, lambda q: q.raw(b"h\x05"), False, content))

    fields = rng.random() < 0.5
    state = (3, rng.choice("<>|=^"), None, ("a",) if fields else None, field if fields else None, size, 1, flags)
    p = Pickle().raw(b"}(").value("model").raw(b"](")
    dtype(p)
    if rng.random() < 0.5:
        array(p)
        p.raw(b"h\x05").build(state)
    else:
        p.raw(b"h\x05").build(state)
        array(p)
    if rng.random() < 0.3:
        p.call("numpy.core.multiarray scalar", lambda q: q.raw(b"h\x05"), content)
    return packed(p.raw(b"eu").end())


def tensors(rng: random.Random, flag: str) -> bytes:
    """A tensor that leaves its storage, or is far larger than it."""
    big = rng.choice((1 << 20, 1 << 33, 1 << 50, 1 << 62, 2**63, 2**64 - 1, -1, -(1 << 40)))
    odd = rng.choice((big, "16", None, 1.5, (1,), True))
    made = rng.choice((
        tensor(16, 0, (big,), (1,)),
        tensor(16, big, (4,), (1,)),
        tensor(16, 0, (4,), (big,)),
        tensor(16, 0, (1 << 20, 1 << 20), (0, 0)),
        tensor(16, 0, (1 << 34,), (0,)),
        tensor(16, 15, (2,), (1,)),
        tensor(16, 0, (2, 2), (1,)),
        tensor(big, 0, (4,), (1,)),
        tensor(odd, 0, (4,), (1,)),
        tensor(16, odd, (4,), odd),
        tensor(16, 0, (4,), (1,), key="../../etc/passwd"),
        tensor(16, 0, (4,), (1,), key="1"),
        tensor(16, 0, (4,), (1,), kind="torch QInt8Storage"),
        tensor(16, 0, (16,), (1,), kind="torch DoubleStorage"),
        tensor(16, 0, (4,), (1,), kind="os system"),
        tensor(16, 0, (4,), (1,), function="_rebuild_qtensor"),
        tensor(16, 0, (1,) * 70, (1,) * 70),
        lambda p: p.call("torch._utils _rebuild_tensor_v2", 1, 2, 3),
        lambda p: p.value({"a": {f"k{n}": tensor(16, 0, (1 << 24,), (0,)) for n in range(64)}}),
        lambda p: p.call("torch.storage UntypedStorage", 1 << 40),
        lambda p: p.call("torch Tensor", (1 << 30,)),
        lambda p: p.call("torch FloatTensor", 1 << 40),
        lambda p: p.call("torch.nn.parameter Parameter", 5),
        lambda p: p.call("torch Size", [-1, 1 << 70]),
        lambda p: p.call("torch device", "privateuseone:99"),
        lambda p: p.call("torch._tensor _rebuild_from_type_v2", lambda q: q.name("os system"), 1, (flag,), {}),
    ))  # fmt: skip
    return packed(tree_with(made))


def bombs(rng: random.Random, flag: str) -> bytes:
    """A pickle that grows when it is read, printed, hashed or freed."""
    deep = rng.choice((2_000, 100_000, 500_000))
    kind = rng.randrange(12)
    p = Pickle()
    if kind == 0:
        text = b"\x80\x02}X\x01\x00\x00\x00m" + b"]" * deep + b"a" * (deep - 1) + b"s."
    elif kind == 1:
        text = b"\x80\x02}X\x01\x00\x00\x00mN" + b"\x85" * deep + b"s."
    elif kind == 2:  # a list of twice the list before
        text = (
            b"\x80\x02}X\x01\x00\x00\x00m]q\x00" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(60)) + b"s."
        )
    elif kind == 3:  # a tuple of twice the tuple before, as a key: hashing it takes 2^60 steps
        text = b"\x80\x02}N\x85q\x00" + b"".join(b"h%ch%c\x86q%c0" % (n, n, n + 1) for n in range(60)) + b"h\x3cNs."
    elif kind == 4:
        text = p.raw(b"}r\xff\xff\xff\xffj\xff\xff\xff\xffN").raw(b"s").end()
    elif kind == 5:
        text = b"\x80\x02}X\xff\xff\xff\xffabc."
    elif kind == 6:
        text = b"\x80\x02}(" + b"]" * 3_000_000 + b"u."
    elif kind == 7:  # itself
        text = b"\x80\x02}q\x00X\x01\x00\x00\x00mh\x00s."
    elif kind == 8:
        text = tree_with(lambda q: q.call("builtins bytearray", 1 << 40))
    elif kind == 9:  # codecs that multiply
        text = p.value(
            {"m": lambda q: q.call("_codecs encode", "a" * 1000, rng.choice(("punycode", "idna", "hex", "zlib")))}
        ).end()
    elif kind == 10:
        text = b"\x80\x02}(" + b"(" * deep + b"."
    else:
        text = b"\x80\x02\x8b\xff\xff\xff\x7f" + bytes(100) + b"."
    return packed(text) if rng.random() < 0.7 else legacy(text)


def attributes(rng: random.Random, flag: str) -> bytes:
    """A state set on what has none, or one that hides methods."""
    hidden = {"items": 1, "keys": 2, "__class__": "x", "get": None, "__dict__": {}, "__setstate__": 3}
    made = rng.choice((
        lambda p: p.call("collections OrderedDict").build((hidden, hidden)),
        lambda p: p.name("argparse Namespace").raw(b")\x81").build([("a", 1)]),
        lambda p: p.name("argparse Namespace").raw(b")\x81").build({1: 2}),
        lambda p: p.name("collections OrderedDict").build({"__reduce__": 1}),
        lambda p: p.name("argparse Namespace").raw(b")\x81").build({"a": 1}).build({"b": 1}),
        lambda p: p.call("builtins set", [[1], {}]),
        lambda p: p.call("builtins set", lambda q: q.call("pathlib PosixPath", "/")),
        lambda p: p.call("collections Counter", "text"),
        lambda p: p.call("collections defaultdict", lambda q: q.name("os system")),
        lambda p: p.call("pathlib PosixPath", 1, None),
        lambda p: p.call("builtins complex", "1j", None),
        lambda p: p.raw(b"N").raw(b"b"),
        lambda p: p.raw(b"]").raw(b"}b"),
        lambda p: p.call("_codecs encode", "\ud800", "latin1"),
        lambda p: p.call("numpy.core.multiarray scalar", 1, 2),
        lambda p: p.name("numpy ndarray").raw(b")\x81").build((1, (1,), 2, False, b"")),
    ))  # fmt: skip
    whole = Pickle().value({"model": made, "again": [made]}).end()
    return packed(whole)


def zips(rng: random.Random, flag: str) -> bytes:
    """An archive whose table of contents lies, or that unpacks to far more than it has."""
    good = saved({"model": {"w": torch.arange(64.0), "v": torch.arange(4)}})
    kind = rng.randrange(9)
    table = good.rindex(b"PK\x05\x06")
    first = struct.unpack_from("<I", good, table + 16)[0]
    data = bytearray(good)
    if kind == 0:  # a member of gigabytes
        struct.pack_into("<II", data, first + 20, 0xFFFFFFF0, 0xFFFFFFF0)
    elif kind == 1:  # two members at one place
        second = data.index(b"PK\x01\x02", first + 4)
        struct.pack_into("<I", data, second + 42, struct.unpack_from("<I", data, first + 42)[0])
    elif kind == 2:
        struct.pack_into("<I", data, first + 42, rng.randrange(1 << 32))
    elif kind == 3:
        struct.pack_into("<HHII", data, table + 8, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    elif kind == 4:
        struct.pack_into("<I", data, table + 16, rng.randrange(1 << 32))
    elif kind == 5:  # packed: 1000 to 1
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02}" + b"N0" * 5_000_000 + b".")
        return buffer.getvalue()
    elif kind == 6:  # encrypted, says its flag
        struct.pack_into("<H", data, first + 8, 1)
    elif kind == 7:
        text = bytes(data)
        return text.replace(b"data.pkl", rng.choice((b"data.pk\0", b"dat\xff.pkl", b"version1")))
    else:
        at = data.index(b"data.pkl") + 60
        for _ in range(20):
            data[at + rng.randrange(80)] = rng.randrange(256)
    return bytes(data)


def old_files(rng: random.Random, flag: str) -> bytes:
    """The older format with storages that are not there, or not as long as they say."""
    numel, view = rng.choice((4, 1 << 40)), rng.choice((None, ("v", 1 << 40, 4), ("v", -4, 2), "x"))

    def reference(p: Pickle) -> Pickle:
        p.raw(b"(").value("storage").name("torch FloatStorage").value("k").value("cpu")
        return p.value(numel).value(view).raw(b"tQ")

    hooks = lambda p: p.call("collections OrderedDict")  # noqa: E731
    whole = Pickle().value(
        {"w": lambda p: p.call("torch._utils _rebuild_tensor_v2", reference, 0, (1 << 38,), (1,), False, hooks)}
    )
    keys = rng.choice((["k"], [], ["k", "k"], ["other"], [[]], 7))
    count = rng.choice((4, -4, 1 << 40, 2**63 - 1))
    rest = struct.pack("<q", count) + bytes(rng.choice((0, 3, 16)))
    return legacy(whole.end(), keys if isinstance(keys, list) else [], rest)


def safe(rng: random.Random, flag: str) -> bytes:
    """A safetensors header that lies."""
    facts = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    header: Any = rng.choice((
        {"w": facts | {"shape": [1 << 40]}},
        {"w": facts | {"data_offsets": [0, 1 << 50]}},
        {"w": facts | {"data_offsets": [16, 0]}},
        {"w": facts | {"data_offsets": [-1, 15]}},
        {"w": facts | {"dtype": "F4"}},
        {"w": facts | {"dtype": "OBJECT"}},
        {"w": facts, "v": facts},
        {"w": facts | {"shape": [2**63, 2**63]}},
        {"w": facts | {"shape": [1.5]}},
        {"w": facts | {"shape": "4"}},
        {"w": 1},
        [1, 2],
        {"__metadata__": {"a": 1}, "w": facts},
        {"__metadata__": [1], "w": facts},
        {f"w{n}": facts | {"shape": [0], "data_offsets": [0, 0]} for n in range(3)},
    ))  # fmt: skip
    text = json.dumps(header).encode()
    if rng.random() < 0.2:
        text = b'{"w":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    length = rng.choice((len(text), len(text), len(text), len(text) + 7, 1 << 62, len(text) - 3))
    return length.to_bytes(8, "little") + text + bytes(16)


def honest() -> list[bytes]:
    """Files that load, to be mutated."""
    from support.published_files import dinov2_manifest, make_state_dict

    tree = {
        "model": OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.ones(2, dtype=torch.bfloat16)),
        "args": {"lr": np.linspace(0, 1, 5), "best": np.float64(0.3), "names": np.array(["a", "bc"])},
    }
    encoder = make_state_dict(dinov2_manifest(64, 1, 2, registers=4), 3)
    files = [saved(t, zipped) for t in (tree, encoder) for zipped in (True, False)]
    return [*files, safetensors.torch.save({key: value.contiguous() for key, value in encoder.items()}, {"a": "b"})]


def mutated(rng: random.Random, flag: str, origin: list[bytes] | None = None) -> bytes:
    """A file that loads, with bytes changed, cut out, doubled, or with parts of another."""
    data = bytearray(rng.choice(origin or honest()))
    for _ in range(rng.choice((1, 3, 20))):
        at = rng.randrange(len(data))
        how = rng.randrange(4)
        if how == 0:
            data[at] = rng.randrange(256)
        elif how == 1:
            del data[at : at + rng.randrange(1, 200)]
        elif how == 2:
            data[at:at] = data[at : at + rng.randrange(1, 200)]
        else:
            data[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"tRbR"))
        if len(data) < 20:
            break
    if data[:2] == b"PK":  # a wrong checksum would end it early
        _mend_checksum(data)
    return bytes(data)


def _mend_checksum(data: bytearray) -> None:
    entry = data.find(b"PK\x01\x02")
    start = data.find(b"FB")
    if entry < 0 or start < 0 or entry + 46 > len(data):
        return
    size, extra = struct.unpack_from("<I", data, entry + 24)[0], struct.unpack_from("<H", data, 28)[0]
    begin = 30 + struct.unpack_from("<H", data, 26)[0] + extra
    struct.pack_into("<I", data, entry + 16, zlib.crc32(bytes(data[begin : begin + size])))


def misshaped(rng: random.Random, flag: str) -> bytes:
    """A file of a known layout whose tensors have other shapes, types and numbers than any network."""
    from support.published_files import dinov2_manifest, make_state_dict

    state = make_state_dict(dinov2_manifest(64, 1, 2, registers=rng.choice((0, 4))), 3)
    for key in rng.sample(sorted(state), rng.choice((1, 3, 8))):
        shape = [rng.choice((0, 1, 2, 3, 7, 14, 64, 65)) for _ in range(rng.randrange(5))]
        state[key] = rng.choice((torch.zeros(shape), torch.zeros(shape, dtype=torch.int64), torch.tensor(float("nan"))))
    if rng.random() < 0.3:
        state = {f"blocks.{rng.choice((9**9, 5, -1))}.{k}" if rng.random() < 0.2 else k: v for k, v in state.items()}
    wrapped = rng.choice((
        lambda s: s,
        lambda s: {"model": {f"encoder.{k}": v for k, v in s.items()}, "args": {"image_size": 10**30}},
        lambda s: {"teacher": {f"backbone.{k}": v for k, v in s.items()}},
        lambda s: {"model": s, "args": {"model": "AsymmetricMASt3R(" + "(" * 5000}},
        lambda s: {"state_dict": {f"decode_head.{k}": v for k, v in s.items()}},
    ))  # fmt: skip
    return saved(wrapped(state))


def header(rng: random.Random, flag: str) -> bytes:
    """Our own safetensors whose header strings say what no converter writes, over tensors of another layout."""
    from dune_cli.checkpoints import adapters
    from support.published_files import dinov2_manifest, make_state_dict

    deep = "[" * 5000 + "]" * 5000
    words = (
        "",
        "x",
        None,
        -1,
        10**30,
        1e308,
        [],
        {},
        [[[]]],
        ["a"],
        "__import__('os').system('true')",
        True,
        {"a": []},
    )
    names = (
        "settings", "min_depth", "max_depth", "CLASSES", "PALETTE", "args", "model", "dune_backbone_name", "image_size",
        "mast3r_model_str", "heads", "patch", "config", "activation", "num_heads", "camera_embedding", "person_center",
    )  # fmt: skip
    facts: Any = {name: rng.choice(words) for name in rng.sample(names, rng.randrange(len(names)))}
    text = rng.choice((json.dumps(facts), json.dumps(facts), deep, "NaN", "[]", "{", '"' * 3))
    tensors = make_state_dict(dinov2_manifest(64, 1, 2, registers=4), 3)
    state = {
        prefix + key: value for prefix in (rng.choice(("", "encoder.", "backbone.")),) for key, value in tensors.items()
    }
    odd = rng.choice(("decode_head.conv_seg.weight", "weight", "bias", "enc_blocks.0.mlp.fc1.weight", "detector.x"))
    state |= {odd: torch.ones([rng.choice((0, 1, 3, 64)) for _ in range(rng.randrange(5))])}
    strings = {
        "dune.layout": rng.choice([adapter.NAME for adapter in adapters.all_adapters()]),
        "dune.facts": text,
        "dune.licence": "\x1b[2J\n" * 3,
    }
    return safetensors.torch.save({key: value.contiguous() for key, value in state.items()}, strings)


# kind -> (maker, whether every file of it must be refused)
KINDS: dict[str, tuple[Callable[[random.Random, str], bytes], bool]] = {
    "calls": (calls, True),
    "dtypes": (dtypes, False),
    "tensors": (tensors, True),
    "bombs": (bombs, True),
    "attributes": (attributes, False),
    "zips": (zips, False),
    "old_files": (old_files, True),
    "safe": (safe, False),
    "mutated": (mutated, False),
    "misshaped": (misshaped, False),
    "header": (header, False),
}


def write_hostile(folder: Path, count: int, seed: int) -> Iterator[tuple[Path, bool]]:
    """`count` files in `folder`, each kind as often, and whether each must be refused. None may make `folder/flag`."""
    names = list(KINDS)
    origin = honest()
    for number in range(count):
        name = names[number % len(names)]
        make, refused = KINDS[name]
        rng = random.Random(f"{seed} {number}")
        flag = str(folder / "flag")
        content = mutated(rng, flag, origin) if name == "mutated" else make(rng, flag)
        path = folder / f"{number:05}-{name}{'.safetensors' if name in ('safe', 'header') else '.pth'}"
        path.write_bytes(content)
        yield path, refused
