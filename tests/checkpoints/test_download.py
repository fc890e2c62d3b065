"""Downloads against a misbehaving server: resumed where it is safe, never wrong, one sentence where it fails."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dune_cli.checkpoints import download
from dune_cli.errors import JobFailed, UserError
from support.file_server import FileServer

CONTENT = bytes(range(256)) * 4096 + b"the end"  # 1 MiB and a bit
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth.part"


def fetch(server: FileServer, part: Path, **how: object) -> str:
    return download.fetch(server.url, part, timeout_seconds=5, sleep=lambda _: None, **how)


def test_a_whole_file_arrives_with_its_hash(part: Path) -> None:
    with FileServer(CONTENT) as server:
        assert fetch(server, part) == SHA256
        assert part.read_bytes() == CONTENT
        assert server.ranges == [None]


def test_a_cut_connection_is_resumed_within_one_call(part: Path) -> None:
    with FileServer(CONTENT, cuts=2, cut_after=300_000) as server:
        assert fetch(server, part) == SHA256
        assert server.ranges == [None, "bytes=300000-", "bytes=600000-"]
        assert [request.get("If-Range") for request in server.behaviour.requests] == [None, '"one"', '"one"']


def test_as_long_as_bytes_come_it_goes_on(part: Path) -> None:
    """`attempts` counts failures without a new byte, so a bad line gets through."""
    with FileServer(CONTENT, cuts=9, cut_after=100_000) as server:
        assert fetch(server, part, attempts=2) == SHA256
        assert len(server.ranges) == 10


def test_the_next_call_goes_on_where_the_last_gave_up(part: Path) -> None:
    with FileServer(CONTENT, cuts=1, cut_after=400_000) as server:
        with pytest.raises(JobFailed, match=r"ended at 400 kB of 1\.05 MB.*400 kB are kept"):
            fetch(server, part, attempts=1)
        assert fetch(server, part) == SHA256
        assert server.ranges == [None, "bytes=400000-"]


def test_a_complete_part_needs_no_second_request(part: Path) -> None:
    with FileServer(CONTENT) as server:
        fetch(server, part)
        assert fetch(server, part) == SHA256
        assert len(server.ranges) == 1


def test_a_server_without_ranges_starts_again(part: Path) -> None:
    with FileServer(CONTENT, cuts=1, cut_after=100_000, ranges=False) as server:
        assert fetch(server, part) == SHA256
        assert len(server.ranges) == 2


@pytest.mark.parametrize("honest", [True, False], ids=["If-Range honoured", "If-Range ignored"])
def test_a_file_that_changed_meanwhile_starts_again(part: Path, honest: bool) -> None:
    with FileServer(b"x" * len(CONTENT), cuts=1, cut_after=200_000, honest_if_range=honest) as server:
        with pytest.raises(JobFailed):
            fetch(server, part, attempts=1)
        server.behaviour.content, server.behaviour.etag = CONTENT, '"two"'
        assert fetch(server, part) == SHA256


def test_without_etag_or_date_nothing_is_trusted(part: Path) -> None:
    with FileServer(CONTENT, cuts=1, cut_after=200_000, etag=None) as server:
        assert fetch(server, part) == SHA256
        assert server.ranges == [None, None]
        assert fetch(server, part) == SHA256  # not even a complete part
        assert len(server.ranges) == 3


def test_a_part_of_another_address_is_not_continued(part: Path) -> None:
    with FileServer(b"y" * len(CONTENT), cuts=1, cut_after=200_000) as server, pytest.raises(JobFailed):
        fetch(server, part, attempts=1)
    with FileServer(CONTENT) as server:
        assert fetch(server, part) == SHA256
        assert server.ranges == [None]


def test_a_part_longer_than_the_file_starts_again(part: Path) -> None:
    with FileServer(CONTENT, cuts=1, cut_after=200_000) as server:
        with pytest.raises(JobFailed):
            fetch(server, part, attempts=1)
        part.write_bytes(CONTENT + CONTENT)
        assert fetch(server, part) == SHA256


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_server_is_asked_again(part: Path, status: int) -> None:
    with FileServer(CONTENT, status=status, failures=2) as server:
        assert fetch(server, part) == SHA256
        assert len(server.ranges) == 3


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_final(part: Path, status: int) -> None:
    with FileServer(CONTENT, status=status, failures=9) as server:
        with pytest.raises(JobFailed, match=f"answers {status}"):
            fetch(server, part)
        assert len(server.ranges) == 1
    assert not part.exists()


def test_a_web_page_is_not_a_weight_file(part: Path) -> None:
    page = FileServer(b"<html>log in</html>", content_type="text/html; charset=utf-8")
    with page as server, pytest.raises(JobFailed, match="web page"):
        fetch(server, part)
    assert not part.exists()


def test_an_answer_of_unknown_length_is_refused(part: Path) -> None:
    with FileServer(CONTENT, send_length=False) as server, pytest.raises(JobFailed, match="how long"):
        fetch(server, part)


def test_a_server_that_hangs_runs_into_the_timeout(part: Path) -> None:
    with FileServer(CONTENT, stall_seconds=20) as server:
        start = time.monotonic()
        with pytest.raises(JobFailed, match=r"2 times in a row .*timed out"):
            download.fetch(server.url, part, attempts=2, timeout_seconds=0.3, sleep=lambda _: None)
        assert time.monotonic() - start < 10


def test_nobody_listens(part: Path) -> None:
    with FileServer(CONTENT) as server:
        url = server.url
    with pytest.raises(JobFailed, match=r"cannot reach 127\.0\.0\.1"):
        download.fetch(url, part, attempts=2, timeout_seconds=2, sleep=lambda _: None)


def test_an_unknown_host_is_told_at_once(part: Path) -> None:
    with pytest.raises(JobFailed, match="online"):
        download.fetch("http://no-such-host.invalid/x.pth", part, sleep=lambda _: pytest.fail("no reason to wait"))


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://localhost/x", "/etc/passwd", "data:,x"])
def test_only_http_is_fetched(part: Path, url: str) -> None:
    with pytest.raises(UserError, match="only http"):
        download.fetch(url, part)


def test_redirects_are_followed_but_not_to_other_schemes(part: Path) -> None:
    with FileServer(CONTENT, redirect="/moved") as server:
        assert fetch(server, part) == SHA256
        server.behaviour.redirect = "ftp://127.0.0.1/weights.pth"
        download.discard(part)
        with pytest.raises(JobFailed, match="redirects to ftp"):
            fetch(server, part)


def test_too_little_room_is_told_before_the_download(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with FileServer(CONTENT) as server, pytest.raises(JobFailed, match=r"room on the disk: 0 B of 1\.05 MB"):
        fetch(server, part)


def test_a_disk_that_fills_up_keeps_what_came(part: Path, tmp_path: Path) -> None:
    """A real limit on the size of files, in a real process; then the same download without it."""
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from dune_cli.checkpoints import download
        from dune_cli.errors import JobFailed
        try:
            download.fetch(sys.argv[1], Path(sys.argv[2]))
        except JobFailed as error:
            print(error)
    """)
    with FileServer(CONTENT) as server:
        run = subprocess.run(
            [sys.executable, "-c", script, server.url, str(part)],
            capture_output=True,
            text=True,
            timeout=60,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)),
        )
        assert run.stdout.startswith("cannot write (File too large): 500 kB of 1.05 MB"), run
        assert part.read_bytes() == CONTENT[:500_000]
        assert fetch(server, part) == SHA256
        assert server.ranges == [None, "bytes=500000-"]


def test_a_full_disk_is_one_sentence(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(download, "_blocks", full)
    with FileServer(CONTENT) as server, pytest.raises(JobFailed, match="No space left on device"):
        fetch(server, part)


def test_a_killed_download_is_resumed(part: Path) -> None:
    script = "import sys; from pathlib import Path; from dune_cli.checkpoints.download import fetch; "
    script += "fetch(sys.argv[1], Path(sys.argv[2]))"
    with FileServer(CONTENT, block_seconds=0.05) as server:
        process = subprocess.Popen([sys.executable, "-c", script, server.url, str(part)])
        deadline = time.monotonic() + 30
        while (not part.exists() or part.stat().st_size < 200_000) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        have = part.stat().st_size
        assert 200_000 <= have < len(CONTENT)
        server.behaviour.block_seconds = 0
        assert fetch(server, part) == SHA256
        assert server.ranges[-1] == f"bytes={have}-"
