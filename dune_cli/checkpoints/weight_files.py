"""The only place that opens weight files: PyTorch's .pth/.pt without running anything in them, and safetensors."""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from dune_cli.checkpoints import weights_folder, zip_archive
from dune_cli.checkpoints.surroundings import Surroundings
from dune_cli.errors import CheckpointError
from dune_cli.provenance import Source, sha256_of

if TYPE_CHECKING:
    import torch

    from dune_cli.checkpoints.hub import HubFile
    from dune_cli.checkpoints.registry import Entry
    from dune_cli.checkpoints.weights_folder import LocatedFile

T = TypeVar("T")


@dataclass(frozen=True)
class WeightFile:
    """An opened weight file.

    `checkpoint`: the dictionary as it lies in the file (containers, state dicts, scalars); for safetensors the flat
    state dict. `metadata`: the strings of a safetensors header; empty for PyTorch files. `entry`: the registry's, of a
    published file. `hub`: of a file of the Hugging Face hub. Tensors are on the CPU and, where the format allows,
    mapped: their bytes are read when used.
    """

    path: Path
    format: Literal["torch", "safetensors"]
    checkpoint: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)
    entry: Entry | None = None
    hub: HubFile | None = None

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal sha256 of the file (reads it once)."""
        return sha256_of(self.path)

    @property
    def published_name(self) -> str:
        """The file name under which it was published, also of a converted file; the file's own if it was not."""
        return self.entry.file if self.entry is not None else self.path.name

    @property
    def surroundings(self) -> Surroundings:
        """Its names and what lies beside it."""
        path = self.path.absolute()
        registered = () if self.entry is None else (self.entry.name, self.entry.file)
        if self.hub is not None:
            registered += (self.hub.repository.partition("/")[2],)
        folders = (folder.name for folder in path.parents)
        return Surroundings((*registered, path.name, *folders), path.parent)

    @property
    def licence(self) -> str:
        """The registry's, else what its safetensors header says, else "unknown"."""
        return self.entry.licence if self.entry is not None else self.metadata.get("dune.licence", "unknown")

    @property
    def source(self) -> Source:
        """The weights behind a result: registry name or place on the hub with its commit, else file name; hash,
        licence."""
        published = self.entry.name if self.entry is not None else None if self.hub is None else str(self.hub)
        return Source(published or self.path.name, self.sha256, self.licence)


def open_weights(name_or_path: str | Path) -> WeightFile:
    """The file behind a registry name or a path, checked against its pinned hash.

    Raises WeightsMissing, CheckpointError, UserError.
    """
    return read_located(weights_folder.locate(name_or_path))


@contextmanager
def naming_file(path: Path | str) -> Iterator[None]:
    """Puts the file's path before a CheckpointError."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_weights(path: str | Path) -> WeightFile:
    """Opens a weight file. Its format is recognised by its content, not by its ending.

    A PyTorch pickle may build tensors, plain containers, `argparse.Namespace`, NumPy arrays and numbers, and paths.
    Any other name in it is refused with that name, and never run. Raises CheckpointError for a file that is unreadable,
    empty, cut, hostile, or of another kind, which the message names.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; a weight file (.pth, .pt, .safetensors) is needed")
    if not path.exists():
        raise CheckpointError(f"no such file: {path}")
    if not path.is_file():
        raise CheckpointError(f"{path} is no regular file; a weight file (.pth, .pt, .safetensors) is needed")
    try:
        kind = sniff(path)
        if kind == "safetensors":
            return _read_safetensors(path, partial(_weight_file, path))
        from dune_cli.checkpoints import torch_files  # imports torch, which listing and fetching do not need

        checkpoint = torch_files.read_legacy(path) if kind == "torch-legacy" else torch_files.read_zip(path)
        if not isinstance(checkpoint, Mapping):
            raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}; a dictionary of weights is needed")
        return WeightFile(path, "torch", dict(checkpoint))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def read_located(located: LocatedFile, remember: bool = True) -> WeightFile:
    """Opens a file that `weights_folder.locate` found. Its hash is compared before any of its content is read.

    A published file in the weights folder that is seen for the first time is pinned (`remember`). CheckpointError: not
    the pinned file, or as `read_weights`.
    """
    path = located.path
    if located.hub is not None and sniff(path) != "safetensors":
        raise CheckpointError(f"{located.hub} is a pickle under the name of safetensors, which is not read")
    if not path.is_file() or not weights_folder.has_hash(located):
        return replace(read_weights(path), entry=located.entry, hub=located.hub)
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    weights_folder.check(located, sha256)
    file = replace(read_weights(path), entry=located.entry)
    vars(file)["sha256"] = sha256  # the cached property's value
    if remember:
        weights_folder.remember(located, sha256)
    return file


def _weight_file(path: Path, file: Any) -> WeightFile:
    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return WeightFile(path, "safetensors", tensors, dict(file.metadata() or {}))


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a flat state dict and its header strings, bit for bit; tensors that share memory are stored apart.

    Equal contents make equal files, which others may read as they may any new file. OSError if it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, dict(metadata))
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    _sort_metadata(path)
    mask = os.umask(0o077)
    os.umask(mask)
    path.chmod(0o666 & ~mask)  # safetensors makes it the owner's alone


def _sort_metadata(path: Path) -> None:
    """safetensors writes the header strings in an order that changes from run to run."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def head_classes(path: Path) -> list[str]:
    """The names of the classes of a head (checkpoints/adapters/head.py) by the file's header, which needs no torch.
    CheckpointError for a damaged file, and for one that says nothing of them."""
    metadata = _read_safetensors(path, lambda file: file.metadata() or {}, "np")
    try:
        return list(json.loads(json.loads(metadata["dune.facts"])["card"])["classes"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the safetensors header of {path} names no classes") from error


def _read_safetensors(path: Path, read: Callable[[Any], T], framework: str = "pt") -> T:
    from safetensors import safe_open

    try:
        with safe_open(path, framework=framework) as file:
            return read(file)
    except OSError:
        raise
    except Exception as error:  # SafetensorError, and what the library's numbers out of range raise
        why = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is a damaged or cut safetensors file ({why}); fetch it again") from error


# torch.save before 1.6 wrote one pickle after the other, this number first (torch/serialization.py, MAGIC_NUMBER).
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"

MAX_HEADER_BYTES = 16 << 20  # of a safetensors file: about 100 bytes a tensor

_OTHER_KINDS = (
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG\r\n", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a RIFF file (WebP, WAV or AVI)"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive (unpack it first)"),
    (b"BZh", "a bzip2 archive (unpack it first)"),
    (b"\xfd7zXZ", "an xz archive (unpack it first)"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"\x89HDF", "an HDF5 file (Keras or MATLAB)"),
    (b"ply\n", "a PLY point cloud"),
    (b"glTF", "a GLB mesh"),
    (b"GGUF", "a GGUF file"),
)


def sniff(path: Path) -> str:
    """ "torch", "torch-legacy" or "safetensors".

    Raises CheckpointError naming what the file is instead: empty, cut, a picture, a web page, a git-lfs pointer, …
    """
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes); fetch the file again")
    with path.open("rb") as file:
        head = file.read(1024)
        if size >= 512:
            file.seek(257)
            tar = file.read(5) == b"ustar"
        else:
            tar = False
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    if LEGACY_MAGIC in head[:32]:
        return "torch-legacy"
    if _has_safetensors_header(head):
        return "safetensors"
    raise CheckpointError(f"{path} is no weight file but {_other_kind(head, tar)}; allowed: .pth, .pt and .safetensors")


def _has_safetensors_header(head: bytes) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and head[8:9] == b"{" and 2 <= length <= MAX_HEADER_BYTES


def _zip_kind(path: Path) -> str:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            members = zip_archive.members(data)
    except zip_archive.NoTableError as error:
        raise CheckpointError(
            f"{path} is cut short: its table of contents, at the end, is missing; fetch it again"
        ) from error
    except zip_archive.ArchiveError as error:
        raise CheckpointError(f"{path} is a damaged archive ({error}); fetch it again") from error
    names = {PurePosixPath(member.name).name for member in members}
    if "constants.pkl" in names:
        raise CheckpointError(f"{path} is a TorchScript program, not a weight file; dune loads state dicts only")
    if "data.pkl" not in names:
        what = "a NumPy archive (.npz)" if any(name.endswith(".npy") for name in names) else "a zip archive"
        raise CheckpointError(f"{path} is no weight file but {what}; allowed: .pth, .pt and .safetensors")
    if not all(member.is_stored for member in members):
        raise CheckpointError(
            f"{path} was packed again with compression, which PyTorch does not write; use the original"
        )
    return "torch"


def _other_kind(head: bytes, tar: bool) -> str:
    text = head.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer to one (run 'git lfs pull' where it came from)"
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page (a login or error page saved in its place?)"
    if text.startswith(b"<?xml"):
        return "an XML document (an error answer saved in its place?)"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    if tar:
        return "a tar archive (unpack it; PyTorch's own tar format, before 2017, is not read)"
    for magic, what in _OTHER_KINDS:
        if head.startswith(magic):
            return what
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "a bare Python pickle (never opened: it could run any program)"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return "a text file"
    return f"of an unknown kind (it starts with {head[:8].hex(' ')})"
