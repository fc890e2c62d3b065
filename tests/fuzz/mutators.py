"""Damage to files that knows their structure. `mutate(content, kind, rng)` is all that the harness calls.

Every kind is a function `(bytes, random.Random) -> bytes` in KINDS; whatever a mutator cannot take apart (it may be
damaged already) is damaged as plain bytes.
"""

from __future__ import annotations

import functools
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

INTEGERS = (0, 1, -1, 2, 7, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63))
FLOATS = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, -1.0, 1e-320, 1e-9, 1e9, 1e38, 1e308, -1e308)
NUMBER_TEXTS = (
    "nan", "NaN", "inf", "-inf", "Infinity", "1e308", "-1e308", "1e999", "-1", "0", "-0", "1e-320", "0x10", "1_000",
    "9223372036854775808", "4294967296", "9" * 400, "1." + "3" * 3000, "", "abc", "1,5", "--1", "1e", "½", "٣", "\x00",
)  # fmt: skip
JSON_TOKENS = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e308", "-1e308", "0", "-1", "1", "0.5", "-0.0", "2.5",
    "9223372036854775807", "9223372036854775808", "-9223372036854775809", "4294967296", "9" * 4000, "1e-400", "1e18",
    "null", "true", "false", '""', '"x"', '"1"', '"nan"', '"\\u0000"', '"\\ud800"', '"../../etc/passwd"', '"/dev/zero"',
    '"/"', '"."', '"\\n"', '"' + "n" * 5000 + '"', "[]", "{}", "[[]]", "[0]", "[null]", '{"a": 1}',
    "[1, 2, 3]", "[[1], [1, 2]]",
    "[" * 80 + "]" * 80, "[" * 3000 + "]" * 3000, '{"a":' * 500 + "1" + "}" * 500, "[" + "0," * 3000 + "0]",
)  # fmt: skip
BOMB_BYTES = 10_000_000
Bytes = Callable[[bytes, random.Random], bytes]


def mutate(content: bytes, kind: str, rng: random.Random) -> bytes:
    """`content` with one to three damages of its kind; now and then of plain bytes instead."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        damage = KINDS.get(kind, of_bytes) if rng.random() < 0.85 else of_bytes
        try:
            content = damage(content, rng)
        except Exception:
            content = of_bytes(content, rng)
    return content


# plain bytes


def of_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, swaps, runs, and numbers written over any place."""
    data = bytearray(content)
    way = rng.randrange(12)
    at = rng.randrange(len(data)) if data else 0
    if not data or way == 0:
        return rng.choice(
            (b"", b"\0", b"\xff" * 64, rng.randbytes(200), bytes(data) * 2, b"\xef\xbb\xbf" + bytes(data))
        )
    if way <= 2:
        for _ in range(rng.choice((1, 1, 3, 20))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif way == 3:
        del data[at:]
    elif way == 4:
        del data[at : at + rng.choice((1, 2, 4, 8, 100))]
    elif way == 5:
        data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 100)))
    elif way == 6:
        size = rng.choice((1, 4, 8, 40))
        other = rng.randrange(len(data))
        data[at : at + size], data[other : other + size] = data[other : other + size], data[at : at + size]
    elif way == 7:
        size = min(rng.choice((4, 16, 200)), len(data) - at)
        data[at : at + size] = bytes([rng.choice((0, 0xFF, 0x20, 0x41))]) * size
    elif way <= 9:
        # length fields lie near the beginning, or at whole words
        at = rng.choice((at, at // 8 * 8, rng.randrange(min(len(data), 64)), len(data) - min(len(data), 22)))
        form = rng.choice(("<H", "<I", "<Q", ">H", ">I", ">Q"))
        number = rng.choice(INTEGERS) % (1 << 8 * struct.calcsize(form))
        _put(data, at, struct.pack(form, number))
    elif way == 10:
        at = rng.choice((at, at // 8 * 8))
        with_form = rng.choice(("<d", "<f", ">d"))
        value = rng.choice(FLOATS)
        _put(
            data,
            at,
            struct.pack(with_form, value if with_form != "<f" or abs(value) < 3e38 or value != value else float("inf")),
        )
    else:
        data[at : at + 1] = bytes([rng.choice((0, 10, 13, 34, 44, 0x7F, 0x80, 0xFF))])
    return bytes(data)


def _put(data: bytearray, at: int, value: bytes) -> None:
    data[at : at + len(value)] = value[: len(data) - at]


# text


def of_text(content: bytes, rng: random.Random) -> bytes:
    """Lines deleted, doubled, swapped; words replaced, deleted, added; other encodings and line ends."""
    text = content.decode("utf-8")
    lines = text.split("\n")
    way = rng.randrange(12)
    at = rng.randrange(len(lines))
    words = lines[at].split(" ")
    if way <= 3:
        words[rng.randrange(len(words))] = rng.choice(NUMBER_TEXTS)
        lines[at] = " ".join(words)
    elif way == 4:
        del words[rng.randrange(len(words))]
        lines[at] = " ".join(words)
    elif way == 5:
        words.insert(rng.randrange(len(words) + 1), rng.choice(NUMBER_TEXTS))
        lines[at] = " ".join(words)
    elif way == 6:
        del lines[at]
    elif way == 7:
        lines.insert(rng.randrange(len(lines)), lines[at])
    elif way == 8:
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif way == 9:
        lines[at] = rng.choice(
            ("x" * 100_000, "1 " * 50_000, "\0", "\ud800", "#", "-" * 50, "\t", "\v\f\x1c\x85\u2028")
        )
    elif way == 10:
        return _encoded(text, rng)
    else:
        number = re.search(r"-?\d+(\.\d+)?(e-?\d+)?", lines[at])
        if number:
            new = rng.choice(NUMBER_TEXTS)
            lines[at] = lines[at][: number.start()] + new + lines[at][number.end() :]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _encoded(text: str, rng: random.Random) -> bytes:
    way = rng.randrange(6)
    if way == 0:
        return text.encode("utf-16")
    if way == 1:
        return text.encode("latin-1", "replace") + b"\xe9"
    if way == 2:
        return text.encode("utf-8-sig")
    if way == 3:
        return text.replace("\n", "\r\n").encode()
    if way == 4:
        return text.replace("\n", "\r").encode()
    return text.encode("utf-32")


# JSON


class Raw(str):
    """Text that stands in the JSON as it is."""


def of_json(content: bytes, rng: random.Random) -> bytes:
    """Values of other kinds and sizes, keys deleted, doubled and renamed, items moved, the text's form."""
    if rng.random() < 0.08:
        return _encoded(content.decode(), rng)
    if rng.random() < 0.05:
        return of_text(content, rng)
    root = [json.loads(content)]
    places = list(_places(root))
    # a value deep inside is one of thousands: half of the time go by the path's names instead
    parent, key = rng.choice(places) if rng.random() < 0.5 else _walk(root, rng)
    value = parent[key]
    way = rng.randrange(14)
    if way <= 4:
        parent[key] = Raw(rng.choice(JSON_TOKENS))
    elif way == 5:
        other_parent, other_key = rng.choice(places)
        parent[key], other_parent[other_key] = (
            json.loads(json.dumps(other_parent[other_key])),
            json.loads(json.dumps(value)),
        )
    elif way == 6 and parent is not root:
        del parent[key]
    elif way == 7 and isinstance(parent, dict):
        parent[rng.choice((key.upper(), key + " ", "", "\0", key[:-1], "__class__"))] = parent.pop(key)
    elif way == 8 and isinstance(parent, dict):
        return _dump(root[0], (id(parent), key, Raw(rng.choice(JSON_TOKENS)))).encode("utf-8", "surrogatepass")
    elif way == 9 and isinstance(parent, list):
        parent.insert(key, json.loads(json.dumps(value)))
    elif way == 10 and isinstance(value, list) and value:
        parent[key] = rng.choice((value[:-1], value * 2, value[::-1], [value], value[0], []))
    elif way == 11 and isinstance(value, (int, float)) and not isinstance(value, bool):
        parent[key] = rng.choice(
            (-value, value * 1e6, value / 1e6, value * 1.5, int(value), str(value), value + 1e-3, [value])
        )
    elif way == 12 and isinstance(value, dict):
        parent[key] = rng.choice((list(value.values()), list(value.items()), [value], {"x": value}))
    elif way == 13 and isinstance(value, str):
        parent[key] = rng.choice(
            (value + "/", value.upper(), value[:-1], value * 50, [value], {value: value}, "é" + value)
        )
    else:
        parent[key] = Raw(rng.choice(JSON_TOKENS))
    return _dump(root[0]).encode("utf-8", "surrogatepass")


def of_json_lines(content: bytes, rng: random.Random) -> bytes:
    """One line as JSON, or the lines as text."""
    lines = content.decode().split("\n")
    filled = [i for i, line in enumerate(lines) if line.strip()]
    if not filled or rng.random() < 0.3:
        return of_text(content, rng)
    at = rng.choice(filled)
    parts = [line.encode() for line in lines]
    parts[at] = of_json(parts[at], rng)
    return b"\n".join(parts)


def _walk(root: Any, rng: random.Random) -> tuple[Any, Any]:
    parent, key = root, 0
    while isinstance(parent[key], (dict, list)) and parent[key] and rng.random() < 0.75:
        parent = parent[key]
        key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
    return parent, key


def _places(node: Any) -> Any:
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], (dict, list)):
            yield from _places(node[key])


def _dump(value: Any, twice: tuple[int, str, Raw] | None = None) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_dump(item, twice)}" for key, item in value.items()]
        if twice is not None and id(value) == twice[0]:
            items.append(f"{json.dumps(twice[1])}: {twice[2]}")
        return "{" + ", ".join(items) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_dump(item, twice) for item in value) + "]"
    return json.dumps(value)


# ZIP and NPZ


def of_zip(content: bytes, rng: random.Random) -> bytes:
    """Fields of the directory and of local headers; members renamed, doubled, cut, swollen."""
    way = rng.randrange(6)
    if way <= 2:
        data = bytearray(content)
        signature, size = rng.choice(((b"PK\x01\x02", 46), (b"PK\x03\x04", 30), (b"PK\x05\x06", 22)))
        starts = [found.start() for found in re.finditer(re.escape(signature), content)]
        at = rng.choice(starts) + rng.randrange(4, size)
        form = rng.choice(("<H", "<I", "<B"))
        number = rng.choice((*INTEGERS, 8, 12, 14, 99, len(content))) % (1 << 8 * struct.calcsize(form))
        _put(data, at, struct.pack(form, number))
        return bytes(data)
    members = _members(content)
    at = rng.randrange(len(members))
    name, value = members[at]
    if way == 3:
        members[at] = (
            rng.choice(("", "../" + name, "/" + name, name * 2, "a.npy", "é", "x" * 3000, members[0][0])),
            value,
        )
    elif way == 4:
        size = rng.choice((0, 1, 2, 3, 3, 3, BOMB_BYTES)) if rng.random() < 0.1 else 1
        members[at] = (name, rng.choice((b"", value[:-1], value * 2, of_bytes(value, rng), bytes(size))))
    else:
        rng.choice((members.reverse, members.pop, lambda: members.append(members[at])))()
    return _zip(members, rng)


def of_npz(content: bytes, rng: random.Random) -> bytes:
    """An array of another type, shape or with other values; its header; or the archive around it."""
    if rng.random() < 0.25:
        return of_zip(content, rng)
    members = _members(content)
    at = rng.randrange(len(members))
    name, value = members[at]
    if rng.random() < 0.3:
        members[at] = (name, _npy_header(value, rng))
    else:
        array = of_array(np.load(io.BytesIO(value), allow_pickle=False), rng)
        file = io.BytesIO()
        np.save(file, array, allow_pickle=False)
        members[at] = (name, file.getvalue())
    return _zip(members, rng)


def of_array(array: np.ndarray, rng: random.Random) -> np.ndarray:
    """The array with another type, shape, or other values at one place, in a row, or everywhere."""
    way = rng.randrange(10)
    if way <= 3:
        array = np.array(array)
        flat = array.reshape(-1)
        if not flat.size:
            return np.ones((3, 4))
        places: Any = rng.choice((rng.randrange(flat.size), slice(None), slice(rng.randrange(flat.size), None)))
        with np.errstate(all="ignore"):
            if array.dtype.kind in "fc":
                flat[places] = rng.choice(FLOATS)
            elif array.dtype.kind in "iu":
                info = np.iinfo(array.dtype)
                flat[places] = rng.choice((info.min, info.max, 0, min(info.max, 1000)))
            elif array.dtype.kind == "b":
                flat[places] = ~flat[places]
            else:
                flat[places] = rng.choice(("", "x", "nan", "../x"))
        return array
    if way == 4:
        kinds = ("<f2", "<f4", "<f8", ">f8", "<i8", "u1", "<u2", "?", "<c16", "<U3", "S3", "<i4", ">i2", "<u8")
        with np.errstate(all="ignore"):
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return array.astype(rng.choice(kinds))
    if way == 5:
        return rng.choice(
            (array.reshape(-1), array[None], array[..., None], array.T, array.reshape(-1)[:1].reshape(()))
        )
    if way == 6 and array.ndim:
        axis = rng.randrange(array.ndim)
        return rng.choice(
            (
                np.concatenate([array, array], axis),
                array.take(range(array.shape[axis] - 1), axis),
                array.take(range(0), axis),
                np.flip(array, axis),
                np.roll(array, 1, axis),
            )
        )
    if way == 7:
        return rng.choice(
            (np.zeros(0), np.array(1.0), np.array("text"), np.zeros((0, 4, 2)), np.arange(12).reshape(3, 4))
        )
    if way == 8 and array.dtype.kind in "fiu" and array.size:
        with np.errstate(all="ignore"):
            return (array * rng.choice((-1, 0, 2, 1000))).astype(array.dtype)
    return np.zeros((1,) * rng.choice((1, 3, 8, 31)) + array.shape[:1], array.dtype)


def _npy_header(value: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack_from("<H", value, 8)
    header, rest = value[10 : 10 + length].decode("latin-1"), value[10 + length :]
    old, new = rng.choice(
        (
            (r"'descr': '[^']*'", f"'descr': {rng.choice(DESCRIPTIONS)}"),
            (r"'shape': \([^)]*\)", f"'shape': {rng.choice(SHAPES)}"),
            (r"'fortran_order': \w+", f"'fortran_order': {rng.choice(('True', '1', 'None', '[]'))}"),
            (r"'shape'", rng.choice(("'shap'", "shape", "'shape': (1,), 'shape'"))),
            (r"$", rng.choice(("(", "'", "\0", "1j", "[" * 2000, " " * 70_000))),
        )
    )
    changed = re.sub(old, lambda _: new, header, count=1).encode("latin-1")
    version = rng.choice((b"\1\0", b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\xff\xff"))
    if len(changed) > 65535 and version == b"\1\0":
        version = b"\2\0"
    size = struct.pack(
        "<H" if version == b"\1\0" else "<I",
        len(changed) + (rng.choice((0, 0, 0, 1, -1, 60000)) if len(changed) < 5000 else 0),
    )
    return value[:6] + version + size + changed + rest


DESCRIPTIONS = (
    "'|O'", "'<f8'", "'<f4'", "'>f8'", "'<U9'", "'|S0'", "'<U0'", "'|V8'", "'<M8[s]'", "'<f3'", "'?'", "'<i8'", "'<u8'",
    "[('a', '<f8')]", "None", "'<f16'", "'<c16'", "('<f8', (2, 2))", "''", "'<f8,<f8'", "b'<f8'", "'|S4000000000'",
)  # fmt: skip
SHAPES = (
    "()", "(0,)", "(-1,)", "(1000000000,)", "(10**9,)", "(9223372036854775807, 9223372036854775807)", "(1.5,)",
    "(True,)", "[3]", "None", "(2, 0, 9223372036854775807)", "(1,)", "(" + "1, " * 40 + ")", "(4294967296, 0)",
    "(-1, -6)", "('3',)",
)  # fmt: skip


def _members(content: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def _zip(members: list[tuple[str, bytes]], rng: random.Random) -> bytes:
    import warnings

    out = io.BytesIO()
    way = rng.choice((zipfile.ZIP_STORED,) * 10 + (zipfile.ZIP_DEFLATED,) * 10 + (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    if sum(len(value) for _, value in members) >= BOMB_BYTES:
        way = zipfile.ZIP_DEFLATED
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", way) as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, value in members:
            archive.writestr(name, value)
    return out.getvalue()


# safetensors


def of_safetensors(content: bytes, rng: random.Random) -> bytes:
    """The header's JSON (with its length), its length alone, or the data."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    way = rng.randrange(8)
    if way <= 2:
        header = of_json(header, rng)
    elif way == 3:
        tree = json.loads(header)
        tensors = [name for name in tree if name != "__metadata__"]
        tensor = tree[rng.choice(tensors)]
        tensor["dtype"] = rng.choice(
            ("F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "C64", "X", "U64", "")
        )
        header = json.dumps(tree).encode()
    elif way == 4:
        tree = json.loads(header)
        tensor = tree[rng.choice([name for name in tree if name != "__metadata__"])]
        begin, end = tensor["data_offsets"]
        tensor["data_offsets"] = rng.choice(
            ([begin, end + 8], [begin - 8, end], [end, begin], [0, end], [begin], [2**63, 2**63])
        )
        header = json.dumps(tree).encode()
    elif way == 5:
        tree = json.loads(header)
        tensor = tree[rng.choice([name for name in tree if name != "__metadata__"])]
        shape = tensor["shape"]
        tensor["shape"] = rng.choice(
            (shape[::-1], [*shape, 1], [1, *shape], [-1], [2**62, 4], [0, *shape], shape * 2, [int(np.prod(shape))])
        )
        header = json.dumps(tree).encode()
    elif way == 6:
        return struct.pack("<Q", rng.choice((0, 1, length - 1, length + 8, 2**63, 2**32, len(content)))) + content[8:]
    elif data:
        data = of_bytes(data, rng)
    return struct.pack("<Q", len(header)) + header + data


# pictures


def of_png(content: bytes, rng: random.Random) -> bytes:
    """Chunks changed, doubled, deleted, swapped and added, their checksums right again."""
    chunks = []
    at = 8
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    place = rng.randrange(len(chunks))
    name, value = chunks[place]
    way = rng.randrange(10)
    if way <= 2:
        head = bytearray(chunks[0][1])
        at = rng.randrange(len(head))
        if at < 8:
            struct.pack_into(">I", head, at // 4 * 4, rng.choice((0, 1, 5, 60_000, 2**31 - 1, 2**32 - 1, 17)))
        else:
            head[at] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 32, 255))
        chunks[0] = (chunks[0][0], bytes(head))
    elif way == 3:
        chunks[place] = (name, of_bytes(value, rng))
    elif way == 4:
        del chunks[place]
    elif way == 5:
        chunks.insert(rng.randrange(len(chunks)), chunks[place])
    elif way == 6:
        before = {b"zTXt": b"k\0\0", b"iCCP": b"k\0\0", b"iTXt": b"k\0\1\0\0\0"}
        kind = rng.choice(list(before))
        chunks.insert(1, (kind, before[kind] + _bomb(5 * BOMB_BYTES)))
    elif way == 7:
        kind = rng.choice((b"tRNS", b"PLTE", b"gAMA", b"eXIf", b"acTL", b"tEXt", b"XXXX"))
        chunks.insert(rng.randrange(1, len(chunks)), (kind, rng.randbytes(rng.choice((0, 2, 4, 6, 8, 30, 100)))))
    elif way == 8:
        rows = zlib.decompress(b"".join(value for name, value in chunks if name == b"IDAT"))
        rows = zlib.compress(rng.choice((rows[: len(rows) // 2], rows * 3, of_bytes(rows, rng))))
        chunks = [c for c in chunks if c[0] != b"IDAT"]
        chunks.insert(len(chunks) - 1, (b"IDAT", _bomb(5 * BOMB_BYTES) if rng.random() < 0.2 else rows))
    else:
        chunks[place] = (rng.choice((b"IEND", b"IDAT", b"IHDR", b"fdAT", b"idat")), value)
    parts = [content[:8]]
    for name, value in chunks:
        parts += [struct.pack(">I", len(value)), name, value, struct.pack(">I", zlib.crc32(name + value))]
    return b"".join(parts)


@functools.cache
def _bomb(size: int) -> bytes:
    return zlib.compress(bytes(size))


def of_jpeg(content: bytes, rng: random.Random) -> bytes:
    """Bytes of the marker segments before the picture's data."""
    start = content.find(b"\xff\xda")
    data = bytearray(content)
    way = rng.randrange(4)
    markers = [found.start() for found in re.finditer(rb"\xff[\xc0-\xfe]", bytes(data[: start + 2]))]
    at = rng.choice(markers)
    if way == 0:
        _put(data, at + 2, struct.pack(">H", rng.choice((0, 1, 2, 65535, 8))))
    elif way == 1:
        data[at + 1] = rng.randrange(0xC0, 0xFF)
    elif way == 2:
        _put(data, at + 4 + rng.randrange(12), rng.choice((b"\0\0", b"\xff\xff", b"\0", b"\xea\x60\xea\x60")))
    else:
        data[at:at] = b"\xff\xe1\xff\xff" + b"Exif\0\0" + rng.randbytes(65527)
    return bytes(data)


# tar


def of_tar(content: bytes, rng: random.Random) -> bytes:
    """A field of a header, its checksum right again; headers doubled, deleted, moved; the end cut."""
    starts = [at for at in range(0, len(content), 512) if content[at + 257 : at + 262] == b"ustar"]
    at = rng.choice(starts)
    header = bytearray(content[at : at + 512])
    way = rng.randrange(8)
    if way <= 4:
        offset, size = rng.choice(((0, 100), (100, 8), (108, 8), (124, 12), (124, 12), (136, 12), (156, 1), (345, 155)))
        octal = rng.choice(
            (b"00000000000", b"77777777777", b"-0000000001", b"zz", b"", b"00000001000", b"\x80" + b"\xff" * 11)
        )
        number = rng.choice((b"\x80" + b"\0" * 10 + b"\1", b"\xff" * 12, b"\xff" * 11 + b"\0", octal, octal))
        kind = bytes([rng.choice(b"0123456789LKxgSD\0")])
        value = kind if size == 1 else number if size == 12 else rng.choice((b"", b"../a.jpg", b"\xff.jpg", octal))
        header[offset : offset + size] = value[:size].ljust(size, b"\0")
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header):06o}\0 ".encode()
        return content[:at] + bytes(header) + content[at + 512 :]
    if way == 5:
        return content[:at] + content[at + 512 :]
    if way == 6:
        return content[:at] + bytes(header) * rng.choice((1, 2, 300)) + content[at:]
    return content[: rng.randrange(len(content))]


def of_tiff(content: bytes, rng: random.Random) -> bytes:
    """A field of an entry of the first directory: tag, type, count, value or where it lies; or its place and length."""
    data = bytearray(content)
    order = "<" if content[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", content, 4)
    (count,) = struct.unpack_from(order + "H", content, start)
    way = rng.randrange(8)
    number = rng.choice((*INTEGERS, start, len(content) - 1, 8, 16, 60_000))
    if way == 0:
        struct.pack_into(order + "I", data, 4, number % 2**32)
    elif way == 1:
        struct.pack_into(order + "H", data, start, number % 2**16)
    elif way == 2:
        struct.pack_into(order + "I", data, start + 2 + 12 * count, number % 2**32)
    else:
        entry = start + 2 + 12 * rng.randrange(count)
        offset, form = rng.choice(((0, "H"), (2, "H"), (4, "I"), (8, "I"), (8, "H"), (8, "I")))
        struct.pack_into(order + form, data, entry + offset, number % (1 << 8 * struct.calcsize(form)))
    return bytes(data)


KINDS: dict[str, Bytes] = {
    "bytes": of_bytes,
    "tar": of_tar,
    "text": of_text,
    "txt": of_text,
    "json": of_json,
    "jsonl": of_json_lines,
    "zip": of_zip,
    "npz": of_npz,
    "safetensors": of_safetensors,
    "png": of_png,
    "jpeg": of_jpeg,
    "jpg": of_jpeg,
    "tiff": of_tiff,
    "tif": of_tiff,
}
