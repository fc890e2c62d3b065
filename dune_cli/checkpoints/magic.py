"""What a file is, told from its first bytes, so that a wrong file can be named instead of "corrupt"."""

from __future__ import annotations

import mmap
from pathlib import Path, PurePosixPath

from dune_cli.checkpoints import archive
from dune_cli.errors import CheckpointError

# torch.save before 1.6 wrote one pickle after the other, this number first (torch/serialization.py, MAGIC_NUMBER).
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"

MAX_HEADER_BYTES = 16 << 20  # of a safetensors file: about 100 bytes a tensor

_STRANGERS = (
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


def kind_of(path: Path) -> str:
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
    raise CheckpointError(f"{path} is no weight file but {_stranger(head, tar)}; allowed: .pth, .pt and .safetensors")


def _has_safetensors_header(head: bytes) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and head[8:9] == b"{" and 2 <= length <= MAX_HEADER_BYTES


def _zip_kind(path: Path) -> str:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            members = archive.members(data)
    except archive.NoTableError as error:
        raise CheckpointError(
            f"{path} is cut short: its table of contents, at the end, is missing; fetch it again"
        ) from error
    except archive.ArchiveError as error:
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


def _stranger(head: bytes, tar: bool) -> str:
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
    for magic, what in _STRANGERS:
        if head.startswith(magic):
            return what
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "a bare Python pickle (never opened: it could run any program)"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return "a text file"
    return f"of an unknown kind (it starts with {head[:8].hex(' ')})"
