"""The members of a zip archive as torch.save writes it: where each one lies, every offset checked. Format: APPNOTE.TXT.

Nothing is unpacked, because PyTorch stores its members uncompressed. A file of any size costs little memory: the table
of contents has a limit, and a member may neither leave the file nor share its bytes with another.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

MAX_TABLE_BYTES = 32 << 20  # about 100 bytes a member: some 300,000 tensors
_END, _END64, _END64_PLACE = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_ENTRY, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"
_FULL32, _FULL16 = 0xFFFFFFFF, 0xFFFF


class ArchiveError(ValueError):
    """A zip archive that is damaged, or that no honest writer makes."""


class NoTableError(ArchiveError):
    """The table of contents, at the end, is missing: the file was cut."""


@dataclass(frozen=True)
class Member:
    """A file in the archive: its bytes are `data[start : start + size]` if `is_stored`."""

    name: str
    start: int
    size: int
    crc32: int
    is_stored: bool


def members(data: Sequence[int] | memoryview) -> list[Member]:
    """The archive's members in the order of its table of contents. `data`: its bytes, or a mapping of them."""
    try:
        return _members(data)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ArchiveError(f"its table of contents is damaged ({type(error).__name__})") from error


def _members(data: Sequence[int] | memoryview) -> list[Member]:
    table, end, count = _table(data)
    found: list[Member] = []
    at = table
    while at < end:
        if bytes(data[at : at + 4]) != _ENTRY:
            raise ArchiveError(f"its table of contents is damaged at byte {at}")
        flags, method = struct.unpack_from("<HH", data, at + 8)
        crc32, packed, size, name_length, extra_length, comment_length = struct.unpack_from("<IIIHHH", data, at + 16)
        (header,) = struct.unpack_from("<I", data, at + 42)
        name = bytes(data[at + 46 : at + 46 + name_length]).decode("utf-8")
        extra = bytes(data[at + 46 + name_length : at + 46 + name_length + extra_length])
        size, packed, header = _sizes(extra, size, packed, header)
        at += 46 + name_length + extra_length + comment_length
        is_stored = method == 0 and not flags & 1 and size == packed
        if header + 30 > table or bytes(data[header : header + 4]) != _LOCAL:
            raise ArchiveError(f"{name[:80]!r} is not where its table of contents says")
        start = header + 30 + sum(struct.unpack_from("<HH", data, header + 26))
        if start + packed > table:
            raise ArchiveError(f"{name[:80]!r} reaches beyond the archive's data")
        found.append(Member(name, start, packed, crc32, is_stored))
    if at != end or len(found) != count:
        raise ArchiveError("its table of contents is damaged: it has another length than it says")
    _refuse_sharing(found)
    return found


def _table(data: Sequence[int] | memoryview) -> tuple[int, int, int]:
    """Where the table of contents begins and ends, and how many members it has."""
    length = len(data)
    tail_at = max(0, length - _FULL16 - 22)
    place = bytes(data[tail_at:length]).rfind(_END)
    if place < 0 or tail_at + place + 22 > length:
        raise NoTableError("its table of contents, at the end, is missing")
    at = tail_at + place
    count, size, table = struct.unpack_from("<HII", data, at + 10)
    last = at
    if count == _FULL16 or _FULL32 in (size, table):
        if at < 20 or bytes(data[at - 20 : at - 16]) != _END64_PLACE:
            raise ArchiveError("its table of contents is damaged: the 64-bit part is missing")
        (last,) = struct.unpack_from("<Q", data, at - 12)
        if last + 56 > at or bytes(data[last : last + 4]) != _END64:
            raise ArchiveError("its table of contents is damaged: the 64-bit part is missing")
        count, size, table = struct.unpack_from("<QQQ", data, last + 32)
    if table + size > last:
        raise ArchiveError("its table of contents lies outside of the file")
    if size > MAX_TABLE_BYTES:
        raise ArchiveError(f"its table of contents has {size:,} bytes; at most {MAX_TABLE_BYTES:,} are read")
    return table, table + size, count


def _sizes(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """The three numbers that stand in the extra field where 32 bits are too few."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            numbers = list(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            values = [numbers.pop(0) if value == _FULL32 else value for value in (size, packed, header)]
            return values[0], values[1], values[2]
        at += 4 + length
    return size, packed, header


def _refuse_sharing(found: list[Member]) -> None:
    if len({member.name for member in found}) < len(found):
        raise ArchiveError("two of its members have one name")
    end = 0
    for member in sorted(found, key=lambda member: member.start):
        if member.size and member.start < end:
            raise ArchiveError(f"{member.name[:80]!r} shares its bytes with another member")
        end = max(end, member.start + member.size)
