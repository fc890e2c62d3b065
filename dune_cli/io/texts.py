"""Text files as people's editors and shells write them: UTF-8 with or without a byte order mark, UTF-16 and UTF-32 with
one (Windows PowerShell's `>`), and names in them with Windows' backslashes."""

from __future__ import annotations

import codecs
from pathlib import Path

MARKS = (  # UTF-32 first: its little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def agreement(matches: int, inliers: int, motion: str) -> str:
    """In words: how many matches there are, and how many of them agree on `motion` ("a pose"); 0 inliers: too few."""
    if not matches:
        return "no match"
    agreeing = f"of which {inliers} agree" if inliers else "too few of which agree"
    return f"{matches} match{'es' if matches > 1 else ''}, {agreeing} on {motion}"


def decode_text(data: bytes) -> str:
    """The text in `data` by its byte order mark, else UTF-8. UnicodeDecodeError for what is no such text."""
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    return data.decode(encoding)


def forward_slashes(name: str) -> str:
    r"""A name with `/` between its parts: `cam1\a.jpg` gives `cam1/a.jpg`. For names that are not found as they are: on
    other systems than Windows a backslash may be part of a name."""
    return name.replace("\\", "/")


def shown(name: str, longest: int = 80) -> str:
    """A name out of somebody's file for a message: as it is, quoted where it is odd, cut in the middle where long."""
    plain = name and name.isprintable() and name == name.strip()
    return _cut(name, longest) if plain else quoted(name, longest)


def quoted(name: str, longest: int = 80) -> str:
    """A name out of somebody's file for a message: quoted and escaped, cut in the middle where long."""
    return _cut(repr(name), longest)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest // 2]}...{text[-longest // 2 + 3 :]}"


def file_in(folder: Path, name: str) -> Path:
    """The file that a list in `folder` calls `name`; where there is none and the name has backslashes, with slashes."""
    path = folder / name
    return path if "\\" not in name or path.exists() else folder / forward_slashes(name)
