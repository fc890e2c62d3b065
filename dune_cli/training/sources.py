"""Where training images come from: folders, text lists, tar shards; random access, so resume is exact."""

from __future__ import annotations

import tarfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from dune_cli.errors import PackageMissing, UserError
from dune_cli.io.inputs import IMAGE_SUFFIXES
from dune_cli.io.safe_read import read_text
from dune_cli.io.texts import file_in


class Source(ABC):
    """A list of encoded images with fixed order."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """A stable name of an image: its path or shard member, relative to the source."""

    @abstractmethod
    def label(self, index: int) -> str:
        """Where an image lies, for people."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded image. Raises OSError when it cannot be read."""


class Files(Source):
    """Local files, `root` being what their names are relative to."""

    def __init__(self, root: Path, paths: list[Path]) -> None:
        self.root, self.paths = root, paths

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        path = self.paths[index]
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.as_posix()

    def label(self, index: int) -> str:
        return str(self.paths[index])

    def read(self, index: int) -> bytes:
        return self.paths[index].read_bytes()


class TarShards(Source):
    """Images inside WebDataset tar shards, read in place by offset; local, or remote through fsspec."""

    def __init__(self, shards: list[str]) -> None:
        self.members: list[tuple[str, str, int, int]] = []  # shard, member, offset, size
        for shard in shards:
            try:
                with _open(shard) as file, tarfile.open(fileobj=file, mode="r:") as archive:
                    self.members += [
                        (shard, member.name, member.offset_data, member.size)
                        for member in archive
                        if member.isfile() and member.name.lower().endswith(IMAGE_SUFFIXES)
                    ]
            except (tarfile.TarError, OSError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise UserError(
                    f"cannot read the tar shard {shard}: {reason} (shards must not be compressed)"
                ) from error

    def __len__(self) -> int:
        return len(self.members)

    def name(self, index: int) -> str:
        shard, member, _, _ = self.members[index]
        return f"{Path(shard).name}/{member}"

    def label(self, index: int) -> str:
        shard, member, _, _ = self.members[index]
        return f"{shard}:{member}"

    def read(self, index: int) -> bytes:
        shard, _, offset, size = self.members[index]
        with _open(shard) as file:
            file.seek(offset)
            return file.read(size)


def _open(url: str) -> Any:
    if "://" not in url:
        return Path(url).open("rb")
    try:
        import fsspec

        return fsspec.open(url, "rb").open()
    except ImportError as error:
        raise PackageMissing(f"reading {url} needs another package ({error}); install it with pip") from error


def open_source(text: str) -> Source:
    """A folder (searched recursively), a text list of paths, or tar shards (a path, URL or glob ending in .tar).

    Relative paths in a list start at the list's folder; lines that begin with # are left out. Raises UserError when
    nothing is there.
    """
    path = Path(text).expanduser()
    if text.endswith(".tar"):
        shards = [text] if "://" in text else sorted(str(found) for found in path.parent.glob(path.name))
        source: Source = TarShards(shards)
    elif path.is_dir():
        found = (p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
        source = Files(path, sorted(p for p in found if p.is_file()))
    elif path.is_file() and text.endswith(".txt"):
        source = Files(path.parent, [file_in(path.parent, line) for line in _lines(path)])
    else:
        raise UserError(f"cannot train on {text!r}: no such folder, .txt list of paths, or .tar shards; check the path")
    if len(source) == 0:
        raise UserError(f"{text} holds no images; allowed endings: {' '.join(IMAGE_SUFFIXES)}")
    return source


def _lines(path: Path) -> list[str]:
    lines = [line.strip() for line in read_text(path, "a list of photos").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]
