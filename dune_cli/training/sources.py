"""Where training images come from: folders, text lists, tar shards; random access, so resume is exact."""

from __future__ import annotations

import tarfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from dune_cli.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class Source(ABC):
    """A list of encoded images with fixed order."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """A stable name of an image: its path or shard member, relative to the source."""

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
                raise UserError(
                    f"cannot read the tar shard {shard}: {error} (shards must not be compressed)"
                ) from error

    def __len__(self) -> int:
        return len(self.members)

    def name(self, index: int) -> str:
        shard, member, _, _ = self.members[index]
        return f"{Path(shard).name}/{member}"

    def read(self, index: int) -> bytes:
        shard, _, offset, size = self.members[index]
        with _open(shard) as file:
            file.seek(offset)
            return file.read(size)


def _open(url: str) -> Any:
    if "://" not in url:
        return Path(url).open("rb")
    import fsspec

    try:
        return fsspec.open(url, "rb").open()
    except ImportError as error:
        raise UserError(f"reading {url} needs another package: {error}") from error


def open_source(text: str) -> Source:
    """A folder (searched recursively), a text list of paths, or tar shards (a path, URL or glob ending in .tar).

    Raises UserError when nothing is there.
    """
    if text.endswith(".tar"):
        shards = [text] if "://" in text else sorted(str(path) for path in Path(text).parent.glob(Path(text).name))
        source: Source = TarShards(shards)
    elif Path(text).is_dir():
        root = Path(text)
        source = Files(root, sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()))
    elif Path(text).is_file() and text.endswith(".txt"):
        root = Path(text).parent
        lines = Path(text).read_text(encoding="utf-8").splitlines()
        source = Files(root, [root / line.strip() for line in lines if line.strip() and not line.startswith("#")])
    else:
        raise UserError(f"cannot train on {text!r}: give a folder of images, a .txt list of paths, or .tar shards")
    if len(source) == 0:
        raise UserError(f"{text} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return source
