"""What a user names on the command line, as a list of image files: images, folders, globs."""

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


def expand(inputs: Sequence[str | Path]) -> list[Path]:
    """The image files that `inputs` name, in their order; a file named twice comes twice.

    A folder stands for the images directly in it (by their endings, hidden ones left out) and a glob for what it
    matches, both in natural order (`img2` before `img10`); a file is taken whatever its ending. `~` is the home folder.
    UserError for what does not exist, matches nothing, holds no images, or is a video.
    """
    if not inputs:
        raise UserError("no images were named; name image files, folders, or globs in quotes")
    return [path for entry in inputs for path in _expand_one(str(entry))]


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sorts the digits in a name by their value: img2 before img10."""
    pieces = re.split(r"(\d+)", path.as_posix())
    return [(0, int(piece), piece) if piece.isdecimal() else (1, 0, piece.casefold()) for piece in pieces]


def _expand_one(entry: str) -> list[Path]:
    if not entry:
        raise UserError("an input is an empty string; name an image, a folder, or a glob")
    path = Path(entry).expanduser()
    try:
        if path.is_dir():
            return _images_in(path)
        if path.exists():
            return [_no_video(path)]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not glob.has_magic(entry):
        raise UserError(f"no such file or folder: {entry}; check the path")
    names = glob.glob(str(path), recursive=True)  # noqa: PTH207 (absolute patterns, too)
    matched = sorted(map(Path, names), key=natural_key)
    images = [match for match in matched if match.is_file() and match.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        found = f"only matches what is no image ({matched[0].name}, ...)" if matched else "matches nothing"
        raise UserError(f"{entry} {found}; allowed endings: {' '.join(IMAGE_SUFFIXES)}")
    return images


def _images_in(folder: Path) -> list[Path]:
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if images:
        return sorted(images, key=natural_key)
    videos = sum(path.suffix.lower() in VIDEO_SUFFIXES for path in files)
    holds = f"{videos} videos but no images; videos are not read yet" if videos else "no images"
    raise UserError(f"the folder {folder} holds {holds}; allowed endings: {' '.join(IMAGE_SUFFIXES)}")


def _no_video(path: Path) -> Path:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        raise UserError(f"{path} is a video, which is not read yet; save frames of it as images and name those")
    return path
