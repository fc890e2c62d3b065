"""Where training images come from: folders, text lists, tar shards; random access, so resume is exact."""

from __future__ import annotations

import contextlib
import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from dune_cli.errors import PackageMissing, UserError
from dune_cli.io.inputs import IMAGE_SUFFIXES
from dune_cli.io.safe_read import MIB, open_regular, read_bytes, read_text
from dune_cli.io.texts import file_in

PHOTO_LIMIT_BYTES = 1024 * MIB
SHARD_MEMBERS = 10_000_000


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
        """The encoded image. Raises OSError or UserError when it cannot be read."""


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
        return read_bytes(self.paths[index], "a photo", PHOTO_LIMIT_BYTES)


class _Member(tarfile.TarInfo):
    """A member whose size may not be negative: tarfile itself would read such an archive in circles."""

    def _block(self, count: int) -> int:
        if count < 0:
            raise tarfile.InvalidHeaderError(f"a member has the size {count}")
        return super()._block(count)


class TarShards(Source):
    """Images inside WebDataset tar shards, read in place by offset; local, or remote through fsspec.

    UserError for a shard that cannot be read, is damaged or ends in the middle of a member.
    """

    def __init__(self, shards: list[str]) -> None:
        self.members: list[tuple[str, str, int, int]] = []  # shard, member, offset, size
        for shard in shards:
            try:
                with _open(shard) as file:
                    self.members += _members(shard, file)
            except (UserError, PackageMissing):
                raise
            except Exception as error:  # tarfile and remote file systems raise whatever damaged bytes call for
                reason = " ".join(str(error).split())[:200] or type(error).__name__
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
        try:
            with _open(shard) as file:
                file.seek(offset)
                return file.read(size)
        except (OSError, UserError, PackageMissing):
            raise
        except Exception as error:  # whatever a remote file system raises
            raise OSError(f"cannot read {self.label(index)}: {' '.join(str(error).split())[:200]}") from error


def _members(shard: str, file: IO[bytes]) -> list[tuple[str, str, int, int]]:
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    found: list[tuple[str, str, int, int]] = []
    before = -1
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # it would keep them all
            if member.offset_data <= before or len(found) > SHARD_MEMBERS:
                raise tarfile.ReadError("its members go in circles")
            before = member.offset_data
            if member.isreg() and not member.issparse() and member.name.lower().endswith(IMAGE_SUFFIXES):
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError(f"it ends in the middle of {member.name}")
                if member.size > PHOTO_LIMIT_BYTES:
                    raise tarfile.ReadError(f"{member.name} has {member.size} bytes, which is too much for a photo")
                found.append((shard, member.name, member.offset_data, member.size))
        file.seek(archive.offset)  # tarfile takes a damaged header after the first for the end
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"the header at byte {archive.offset} is damaged")
    return found


@contextlib.contextmanager
def _open(url: str) -> Iterator[IO[bytes]]:
    if "://" not in url:
        with open_regular(url, "a tar shard") as file:
            yield file
        return
    try:
        import fsspec

        remote = fsspec.open(url, "rb").open()
    except ImportError as error:
        raise PackageMissing(f"reading {url} needs another package ({error}); install it with pip") from error
    with remote:
        yield remote


def check_source(text: str) -> None:
    """UserError as `open_source` raises it for a place that is not there or holds no image; nothing is listed."""
    path = Path(text).expanduser()
    if text.endswith(".tar"):
        found = "://" in text or any(path.parent.glob(path.name))
    elif path.is_dir():
        found = any(_images(path))
    elif path.is_file() and text.endswith(".txt"):
        found = True
    else:
        raise UserError(f"cannot train on {text!r}: no such folder, .txt list of paths, or .tar shards; check the path")
    if not found:
        raise UserError(f"{text} holds no images; allowed endings: {' '.join(IMAGE_SUFFIXES)}")


def tagged(text: str, teachers: Sequence[str]) -> tuple[str | None, str]:
    """(teacher or None, source) of `TEACHER=SOURCE` or `SOURCE`."""
    tag, separator, rest = text.partition("=")
    if not separator or Path(text).exists():
        return None, text
    if tag in teachers:
        return tag, rest
    if "/" in tag or tag.startswith((".", "~")):
        return None, text
    raise UserError(f"--data {text!r}: {tag!r} is no teacher of this run; its teachers: {', '.join(teachers)}")


def _images(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file():
            yield path


def open_source(text: str) -> Source:
    """A folder (searched recursively), a text list of paths, or tar shards (a path, URL or glob ending in .tar).

    Relative paths in a list start at the list's folder; lines that begin with # are left out. Raises UserError when
    nothing is there.
    """
    check_source(text)
    path = Path(text).expanduser()
    if text.endswith(".tar"):
        shards = [text] if "://" in text else sorted(str(found) for found in path.parent.glob(path.name))
        source: Source = TarShards(shards)
    elif path.is_dir():
        source = Files(path, sorted(_images(path)))
    else:
        source = Files(path.parent, [file_in(path.parent, line) for line in _lines(path)])
    if len(source) == 0:
        raise UserError(f"{text} holds no images; allowed endings: {' '.join(IMAGE_SUFFIXES)}")
    return source


def _lines(path: Path) -> list[str]:
    lines = [line.strip() for line in read_text(path, "a list of photos").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]
