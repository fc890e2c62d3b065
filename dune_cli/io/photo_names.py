"""Names of photos in output files, relative to their common folder; and files that belong to a photo beside them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dune_cli.errors import UserError
from dune_cli.io.safe_read import forward_slashes, is_file, read_json

VIDEO, MASK, RESULT = "the moving part of a live photo", "a mask or map", "a result of dune"
RESULT_LIMIT_BYTES = 4_000_000  # the JSON of a picture takes some kilobytes
BESIDE = re.compile(r"(?:mask|depth)[_.-](?P<after>.+)|(?P<before>.+)[_.-](?:mask|depth)", re.IGNORECASE)


def common_folder(paths: Sequence[str | Path]) -> Path:
    """The innermost folder that contains all of the files, absolute; links are not followed."""
    return Path(os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths]))  # noqa: PTH100, PTH120


def relative_names(paths: Sequence[str | Path]) -> list[str]:
    """The files' names relative to their common folder, with forward slashes, as COLMAP names images relative to its
    image folder: `cam1/IMG_0000.jpg`, or the file name alone where all are in one folder."""
    if not paths:
        return []
    folder = str(common_folder(paths))
    return [Path(os.path.relpath(os.path.abspath(path), folder)).as_posix() for path in paths]  # noqa: PTH100


def is_utf8(name: str | Path) -> bool:
    """Whether a file's name is UTF-8 text; Python represents others with surrogates."""
    try:
        str(name).encode()
    except UnicodeEncodeError:
        return False
    return True


def check_names_for_colmap(names: Sequence[str], binary: bool) -> None:
    """UserError for image names that a COLMAP model cannot hold: duplicates, names that are not UTF-8 (pycolmap cannot
    read them back) and, in the text form, names with white space."""
    taken: set[str] = set()
    for name in names:
        if name in taken:
            raise UserError(f"a COLMAP model needs different image names, got {name} twice; leave one of them out")
        taken.add(name)
        if not is_utf8(name):
            raise UserError(f"a COLMAP model cannot hold the image name {name!r}, which is not UTF-8; rename the file")
        if not binary and name.split() != [name]:
            raise UserError(
                f"COLMAP's text form cannot hold the image name {name!r}, which has white space in it; write the "
                "binary form (--colmap-format binary), or rename the file"
            )


def check_names_for_json(paths: Sequence[str | Path], file: str | Path) -> None:
    """UserError for photos whose paths the JSON `file` cannot hold: paths that are not UTF-8, and duplicates."""
    taken: set[str] = set()
    for path in paths:
        absolute = os.path.abspath(path)  # noqa: PTH100
        if not is_utf8(absolute):
            raise UserError(f"{file} cannot hold the path {absolute!r}, which is not UTF-8; rename the file or folder")
        if absolute in taken:
            raise UserError(f"{file} needs different photos, got {path} twice; leave one of them out")
        taken.add(absolute)


def companions(images: Iterable[Path], videos: Iterable[Path]) -> dict[Path, str]:
    """Files that belong to one of the `images` in the same folder, and what they are.

    These are a video with the name of an image (`IMG_1.mov`, `IMG_1.heic`), an image with the full name of another one
    (COLMAP's masks, `a.jpg.png`), and an image with the name of another one and the word mask or depth (`mask_a.png`,
    `a_depth.png`).
    """
    images = list(images)
    names = {_key(image, image.name) for image in images}
    stems = {_key(image, image.stem) for image in images}
    beside = {video: VIDEO for video in videos if _key(video, video.stem) in stems}
    for image in images:
        match = BESIDE.fullmatch(image.stem)
        other = "" if match is None else match["after"] or match["before"]
        if _key(image, image.stem) in names or (other and (_key(image, other) in stems or _key(image, other) in names)):
            beside[image] = MASK
    return beside


def results_among(images: Iterable[Path]) -> dict[Path, str]:
    """The images that dune wrote, maps and pictures of them (`depth.png`, `depth_preview.png`), and what they are.

    They are those that the JSON file beside a result (`depth.json`) names as its file, preview or overlay.
    """
    found = {}
    for image in images:
        stem = image.stem.removesuffix("_preview")
        documents = (image.with_name(f"{stem}.json"), image.with_suffix(".json"))
        if any(is_file(document) and image.name in _pictures_in(document) for document in dict.fromkeys(documents)):
            found[image] = RESULT
    return found


def _pictures_in(document: Path) -> set[str]:
    """The names of the files that the JSON of a result names as its own; none of another or an unreadable file."""
    try:
        fields = read_json(document, limit_bytes=RESULT_LIMIT_BYTES)
    except UserError:
        return set()
    if not isinstance(fields, dict) or not str(fields.get("schema")).startswith("dune."):
        return set()
    values = (fields.get(key) for key in ("file", "preview", "overlay"))
    return {Path(value).name for value in values if isinstance(value, str)}


def _key(path: Path, name: str) -> tuple[Path, str]:
    return path.parent, name.casefold()


def matching_keys(names: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    """The key of each photo's name that has one: the key with the longest common tail of path parts, else the only one
    with its stem; if there is none, the same with slashes for backslashes. Of several names with the same best key,
    only those with the longest tail keep it."""
    tables = [_KeyTable({key: key for key in keys}), _KeyTable({forward_slashes(key): key for key in keys})]
    matches: dict[str, tuple[str, int]] = {}
    longest: dict[str, int] = {}
    for name in names:
        match = next((match for match in (table.lookup(name) for table in tables) if match is not None), None)
        if match is not None:
            matches[name] = match
            longest[match[0]] = max(match[1], longest.get(match[0], 0))
    return {name: key for name, (key, common) in matches.items() if common == longest[key]}


class _KeyTable:
    """Looks up a file's keys by a spelling of them (spelling -> key)."""

    def __init__(self, spelled: Mapping[str, str]) -> None:
        self._by_name: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for spelling, key in spelled.items():
            path = Path(spelling)
            self._by_name.setdefault(path.name, []).append((path.parts[::-1], key))
            for stem in {path.stem, spelling}:
                self._by_stem.setdefault(stem, []).append(key)

    def lookup(self, name: str) -> tuple[str, int] | None:
        """The key of an image name, and the number of path parts that they have in common."""
        path = Path(name)
        parts = path.parts[::-1]
        same_name = [(_common_length(parts, own), key) for own, key in self._by_name.get(path.name, [])]
        if same_name:
            common, key = max(same_name, key=lambda entry: entry[0])
            return key, common
        stems = self._by_stem.get(path.stem, [])
        return (stems[0], 0) if len(stems) == 1 else None


def _common_length(one: Sequence[str], two: Sequence[str]) -> int:
    """The number of equal parts at the beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, two)) if a != b), min(len(one), len(two)))
