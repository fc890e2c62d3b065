"""A small HTTP fetcher for large files: resumes, notices a changed file, and never calls a cut download complete."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from dune_cli import __version__, console
from dune_cli.checkpoints.registry import format_bytes
from dune_cli.errors import JobFailed, UserError
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


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never to another scheme than https, or http from http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and scheme != urllib.parse.urlsplit(req.full_url).scheme:
            raise JobFailed(f"{req.full_url} redirects to {newurl}, which is not https: refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request, part: Path, timeout_seconds: float) -> http.client.HTTPResponse:
    url = request.full_url
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=timeout_seconds)
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
