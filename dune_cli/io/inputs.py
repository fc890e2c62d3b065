"""Inputs named on the command line as a list of files: images, folders, globs, and videos for some commands."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.io.object_stores import is_url
from dune_cli.io.photo_names import companions, results_among

# fmt: off
IMAGE_SUFFIXES = (  # what photos.py reads
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tga", ".tif",
    ".tiff", ".webp",
)
RAW_SUFFIXES = (".3fr", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw", ".x3f")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv")
# fmt: on
MAX_FOLDERS_SEARCHED = 200  # below a folder that is named
VERBS = "dune depth, dune human, dune index, dune reconstruct and dune reloc --map"


def expand(inputs: Sequence[str | Path], videos: bool = False) -> list[Path]:
    """The image files that `inputs` name, in their order; with `videos` also video files. Duplicates are kept.

    A folder stands for the images (and videos) directly in it, by their endings and without hidden files; a glob stands
    for what it matches. Both are in natural order (`img2` before `img10`). A file is taken whatever its ending. `~` is
    the home folder. Notes name files that are left out: masks, videos of live photos, raw files, subfolders.
    UserError for an input that does not exist, matches nothing, holds no images, or is a video without `videos`.
    """
    if not inputs:
        raise UserError("no images were named; name image files, folders, or globs in quotes")
    return [path for entry in inputs for path in _expand_one(str(entry), videos)]


def is_video(path: Path) -> bool:
    """Whether the file's ending is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """The sort key for natural order, numbers by their value: img2 before img10."""
    pieces = re.split(r"(\d+)", path.as_posix())
    return [(0, int(piece), piece) if piece.isdecimal() else (1, 0, piece.casefold()) for piece in pieces]


def _expand_one(entry: str, videos: bool) -> list[Path]:
    if not entry:
        raise UserError("an input is an empty string; name an image, a folder, or a glob")
    if is_url(entry):
        raise UserError(f"{entry} is a URL, which is read with --shards only; add that, or copy the files first")
    path = Path(entry).expanduser()
    try:
        if path.is_dir():
            return _images_in(path, videos)
        if path.exists():
            if not path.is_file():
                raise UserError(f"{path} is no regular file; save the photo to a file first")
            return [path if videos else _refuse_video(path)]
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not glob.has_magic(entry):
        raise UserError(f"no such file or folder: {entry}; check the path")
    names = glob.glob(str(path), recursive=True)  # noqa: PTH207 (absolute patterns, too)
    matched = sorted(map(Path, names), key=natural_key)
    photos = _photos_among([match for match in matched if match.is_file()], entry, videos)
    if not photos:
        what = f"only matches what is no image ({matched[0].name}, ...)" if matched else "matches nothing"
        raise UserError(f"{entry} {what}; allowed endings: {' '.join(_suffixes(videos))}")
    return photos


def _suffixes(videos: bool) -> tuple[str, ...]:
    return IMAGE_SUFFIXES + VIDEO_SUFFIXES if videos else IMAGE_SUFFIXES


def _images_in(folder: Path, videos: bool) -> list[Path]:
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    files = sorted((path for path in inside if path.is_file()), key=natural_key)
    photos = _photos_among(files, str(folder), videos)
    below = _folders_with_images(path for path in inside if path.is_dir())
    if photos:
        if below:
            _note(f"{folder}: its subfolders with images are left out, name them as well", list(map(str, below)))
        return photos
    if below:
        names = list(below)
        shown = [f"{name.relative_to(folder)} ({below[name]})" for name in names[:3]]
        ending = next(path.suffix for path in names[0].iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        raise UserError(
            f"the folder {folder} holds no images itself, its subfolders do: {_few(shown, len(names))}; name them "
            f"({' '.join(map(str, names[:2]))}{' ...' if len(names) > 2 else ''}), or a pattern in quotes "
            f"('{folder}/**/*{ending}')"
        )
    count = sum(map(is_video, files))
    raw = [path for path in files if path.suffix.lower() in RAW_SUFFIXES]
    holds = f"{count} videos but no images; {VERBS} read videos" if count else "no images"
    if raw and not count:
        holds = f"{len(raw)} raw files ({raw[0].name}, ...) but no images that are read; save them as JPEG or PNG first"
    raise UserError(f"the folder {folder} holds {holds}; allowed endings: {' '.join(_suffixes(videos))}")


def _photos_among(files: Sequence[Path], where: str, videos: bool) -> list[Path]:
    """The images (and `videos`) among the files; notes name the files that are left out."""
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    films = [path for path in files if is_video(path)]
    results = results_among(images)
    beside = companions(images, films) | (results if len(results) < len(images) else {})
    photos = [path for path in files if path not in beside and path.suffix.lower() in _suffixes(videos)]
    if photos:
        for kind in dict.fromkeys(beside.values()):
            names = [path.name for path, own in beside.items() if own == kind]
            _note(f"{where}: left out as {kind} beside photos (named one by one, it is read)", names)
        left = [path.name for path in films if not videos and path not in beside]
        if left:
            _note(f"{where}: left out as videos, which are not read here", left)
        raw = [path.name for path in files if path.suffix.lower() in RAW_SUFFIXES]
        if raw:
            _note(f"{where}: left out as raw files, which are not read", raw)
    return photos


def _folders_with_images(folders: Iterable[Path]) -> dict[Path, int]:
    """The number of images directly in each of the folders and their subfolders, for those that hold any. Hidden and
    unreadable folders are left out, and at most MAX_FOLDERS_SEARCHED are searched."""
    counts: dict[Path, int] = {}
    todo = sorted(folders, key=natural_key)[::-1]
    for _ in range(MAX_FOLDERS_SEARCHED):
        if not todo:
            break
        folder = todo.pop()
        try:
            inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
            count = sum(path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() for path in inside)
            todo += sorted((path for path in inside if path.is_dir() and not path.is_symlink()), key=natural_key)[::-1]
        except OSError:
            continue
        if count:
            counts[folder] = count
    return counts


def _note(text: str, names: Sequence[str]) -> None:
    console.note(f"{text}: {_few(names, len(names))}")


def _few(names: Sequence[str], count: int) -> str:
    return ", ".join(names[:3]) + (f" and {count - 3} more" if count > 3 else "")


def _refuse_video(path: Path) -> Path:
    if is_video(path):
        raise UserError(f"{path} is a video, and only {VERBS} read those; save frames of it as images and name them")
    return path
