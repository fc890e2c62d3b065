from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dune_cli.errors import UserError
from dune_cli.io.outputs import atomic_directory, atomic_path, check_output, check_output_folder


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_success_replaces_the_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "a.ply"
    for content in ("first", "second"):
        with atomic_path(target) as temporary:
            assert temporary.suffix == ".ply" and temporary.parent == target.parent and temporary != target
            temporary.write_text(content)
        assert target.read_text() == content and _names(target.parent) == ["a.ply"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_failure_leaves_the_old_file_and_nothing_else(error: BaseException, tmp_path: Path) -> None:
    target = tmp_path / "a.ply"
    target.write_text("old")
    with pytest.raises(type(error)), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old" and _names(tmp_path) == ["a.ply"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.ply"
    link.symlink_to(tmp_path / "real" / "a.ply")
    with atomic_path(link) as temporary:
        temporary.write_text("x")
    assert link.is_symlink() and (tmp_path / "real" / "a.ply").read_text() == "x"


def test_a_folder_appears_whole_and_keeps_what_is_not_its_own(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_directory(target) as temporary:
        (temporary / "a.bin").write_text("1")
        assert not target.exists()
    assert _names(target) == ["a.bin"] and _names(tmp_path) == ["model"]
    (target / "mine.jpg").write_text("keep")
    with atomic_directory(target, replaces=["a.bin", "a.txt"]) as temporary:
        (temporary / "a.txt").write_text("2")
    assert _names(target) == ["a.txt", "mine.jpg"] and _names(tmp_path) == ["model"]
    with pytest.raises(RuntimeError), atomic_directory(target, replaces=["a.txt"]) as temporary:
        (temporary / "a.bin").write_text("3")
        raise RuntimeError
    assert _names(target) == ["a.txt", "mine.jpg"] and _names(tmp_path) == ["model"]


def test_check_output_takes_what_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_output("~/scene.PLY", [".ply"], False) == tmp_path / "scene.PLY"
    assert check_output(tmp_path / "new" / "scene.ply", [".ply"], False).name == "scene.ply"
    (tmp_path / "old.ply").write_text("x")
    assert check_output(tmp_path / "old.ply", [".ply"], True) == tmp_path / "old.ply"
    assert check_output_folder(tmp_path / "new", False) == tmp_path / "new"
    assert check_output_folder(tmp_path, True) == tmp_path
    assert _names(tmp_path) == ["old.ply"]  # nothing is made by looking


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("scene.xyz", r"the ending \.xyz; allowed: \.ply \.obj"),
        ("scene", "no ending"),
        ("old.ply", "--overwrite"),
        ("dangling.ply", "--overwrite"),
        ("folder.ply", "is a folder"),
        ("old.ply/scene.ply", "is a file, not a folder"),
        ("old.ply/new/scene.ply", "is a file, not a folder"),
        ("dangling.ply/scene.ply", "is a link to nothing"),
        ("x" * 300 + ".ply", "cannot write"),
    ],
)
def test_check_output_refuses(name: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "old.ply").write_text("x")
    (tmp_path / "folder.ply").mkdir()
    (tmp_path / "dangling.ply").symlink_to("nowhere.ply")
    with pytest.raises(UserError, match=word):
        check_output(tmp_path / name, [".ply", ".obj"], False)


def test_check_output_refuses_where_the_system_does(tmp_path: Path) -> None:
    for folder in ("/proc", "/proc/self/fdinfo"):
        if Path(folder).is_dir():
            with pytest.raises(UserError, match="cannot write"):
                check_output(f"{folder}/scene.ply", [".ply"], False)


def test_check_output_folder_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        check_output_folder(tmp_path / "file", True)
    with pytest.raises(UserError, match="--overwrite"):
        check_output_folder(tmp_path, False)


WRITES_SLOWLY = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits "ignore"
from dune_cli.io.outputs import atomic_path
with atomic_path(sys.argv[1]) as temporary, temporary.open("w") as file:
    file.write("half"); file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_leaves_the_old_file(kind: signal.Signals, tmp_path: Path) -> None:
    target = tmp_path / "a.ply"
    target.write_text("old")
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES_SLOWLY, str(target)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    time.sleep(0.05)
    process.send_signal(kind)
    process.wait(20)
    assert target.read_text() == "old"
    if kind == signal.SIGINT:
        assert _names(tmp_path) == ["a.ply"]
