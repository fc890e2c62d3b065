"""What a user names on the command line, as a list of files: images, folders, globs, and videos for some verbs."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from dune_cli.errors import UserError

# fmt: off
IMAGE_SUFFIXES = (  # what photos.py reads
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tga", ".tif",
    ".tiff", ".webp",
)
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv")
# fmt: on
VERBS = "dune depth, dune human and dune reconstruct"


def expand(inputs: Sequence[str | Path], videos: bool = False) -> list[Path]:
    """The image files that `inputs` name, in their order; a file named twice comes twice. `videos`: and video files.

    A folder stands for the images (and videos) directly in it (by their endings, hidden ones left out) and a glob for
    what it matches, both in natural order (`img2` before `img10`); a file is taken whatever its ending. `~` is the home
    folder. UserError for what does not exist, matches nothing, holds no images, or is a video that is not asked for.
    """
    if not inputs:
        raise UserError("no images were named; name image files, folders, or globs in quotes")
    return [path for entry in inputs for path in _expand_one(str(entry), videos)]


def is_video(path: Path) -> bool:
    """By its ending."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sorts the digits in a name by their value: img2 before img10."""
    pieces = re.split(r"(\d+)", path.as_posix())
    return [(0, int(piece), piece) if piece.isdecimal() else (1, 0, piece.casefold()) for piece in pieces]


def _expand_one(entry: str, videos: bool) -> list[Path]:
    if not entry:
        raise UserError("an input is an empty string; name an image, a folder, or a glob")
    path = Path(entry).expanduser()
    try:
        if path.is_dir():
            return _images_in(path, videos)
        if path.exists():
            return [path if videos else _no_video(path)]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not glob.has_magic(entry):
        raise UserError(f"no such file or folder: {entry}; check the path")
    names = glob.glob(str(path), recursive=True)  # noqa: PTH207 (absolute patterns, too)
    matched = sorted(map(Path, names), key=natural_key)
    images = [match for match in matched if match.is_file() and match.suffix.lower() in _suffixes(videos)]
    if not images:
        found = f"only matches what is no image ({matched[0].name}, ...)" if matched else "matches nothing"
        raise UserError(f"{entry} {found}; allowed endings: {' '.join(_suffixes(videos))}")
    return images


def _suffixes(videos: bool) -> tuple[str, ...]:
    return IMAGE_SUFFIXES + VIDEO_SUFFIXES if videos else IMAGE_SUFFIXES


def _images_in(folder: Path, videos: bool) -> list[Path]:
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    images = [path for path in files if path.suffix.lower() in _suffixes(videos)]
    if images:
        return sorted(images, key=natural_key)
    count = sum(map(is_video, files))
    holds = f"{count} videos but no images; {VERBS} read videos" if count else "no images"
    raise UserError(f"the folder {folder} holds {holds}; allowed endings: {' '.join(_suffixes(videos))}")


def _no_video(path: Path) -> Path:
    if is_video(path):
        raise UserError(f"{path} is a video, and only {VERBS} read those; save frames of it as images and name them")
    return path
