"""How many threads: the affinity mask, a container's quota and OMP_NUM_THREADS; device names without torch."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dune_cli import runtime
from dune_cli.errors import UserError


def quota(folder: Path, text: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "cpu.max").write_text(text)
    return str(folder)


@pytest.mark.parametrize(
    ("text", "count"),
    [("max 100000\n", None), ("150000 100000\n", 2), ("20000 100000\n", 1), ("nonsense", None), ("", None)],
)
def test_a_containers_quota(text: str, count: int | None, tmp_path: Path) -> None:
    assert runtime._cgroup_processors(quota(tmp_path, text)) == count
    assert runtime._cgroup_processors(str(tmp_path / "absent")) is None


def test_threads_follow_the_mask_the_quota_and_the_users_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(runtime, "_cgroup_processors", lambda: None)
    assert runtime.available_threads() == 6
    monkeypatch.setattr(runtime, "_cgroup_processors", lambda: 4)
    assert runtime.available_threads() == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert runtime.available_threads() == 3


def test_libraries_are_told_only_where_there_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM", "OMP_WAIT_POLICY")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(runtime, "available_threads", lambda: 8)
    runtime.limit_threads()
    assert [os.environ.get(name) for name in names] == [None, "1", None, None, "passive"]
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    monkeypatch.setattr(runtime, "available_threads", lambda: 2)
    runtime.limit_threads()
    assert [os.environ[name] for name in names] == ["2", "1", "1", "2", "passive"]


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:0", ""])
def test_names_that_are_no_device(name: str) -> None:
    with pytest.raises(UserError, match="unknown device"):
        runtime.check_device(name)


def test_names_that_are_devices() -> None:
    for name in (*runtime.DEVICES, "cuda:1"):
        runtime.check_device(name)


@pytest.mark.parametrize("threads", [1, 3])
def test_results_in_the_order_of_their_items_and_errors_at_their_turn(threads: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(40):
            taken.append(item)
            yield item

    def function(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        if item == 25:
            raise UserError("the 26th")
        return item * item

    found = runtime.ordered_map(function, items(), threads)
    assert next(found) == 0 and len(taken) <= 3 * threads  # memory stays bounded
    got = [0]
    with pytest.raises(UserError, match="the 26th"):
        for square in found:
            got.append(square)
    assert got == [item * item for item in range(25)]
    assert list(runtime.ordered_map(abs, [-3, 2], threads)) == [3, 2] and not list(runtime.ordered_map(abs, [], 2))


def test_later_values_are_those_of_their_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads in (1, 2):
        monkeypatch.setattr(runtime, "available_threads", lambda threads=threads: threads)
        later = runtime.LaterValues({"a": lambda: 1, "b": lambda: 1 // 0})
        assert later["a"] == 1 and list(later) == ["a", "b"] and runtime.LaterValues({"a": lambda: 1}) == {"a": 1}
        with pytest.raises(ZeroDivisionError):
            later["b"]


# prints whether malloc was told, and the MB that the process is larger for 20 blocks of 8 MiB that were freed, between
# blocks that stay; with an argument malloc is not told
FREED = """
import ctypes, os, sys
from dune_cli import runtime

told = len(sys.argv) == 1 and runtime.return_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
libc.free.argtypes = (ctypes.c_void_p,)

def filled(size):
    return ctypes.memset(libc.malloc(size), 1, size)

def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

libc.free(filled(20 << 20))
before = resident_mb()
large = [(filled(8 << 20), filled(100_000))[0] for _ in range(20)]
for block in large:
    libc.free(block)
print(told, round(resident_mb() - before))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told")
def test_freed_memory_goes_back_to_the_system() -> None:
    code = [sys.executable, "-c", FREED]
    told, left = subprocess.run(code, capture_output=True, text=True, check=True).stdout.split()
    assert told == "True"
    assert (
        int(left) < 10 < 100 < int(subprocess.run([*code, "untold"], capture_output=True, text=True).stdout.split()[1])
    )


def test_malloc_is_not_told_against_the_user_or_of_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert runtime.return_freed_memory() is False
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert runtime.return_freed_memory() is False


def test_pieces_of_work_see_one_thread_and_the_callers_inference_mode() -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with torch.inference_mode(), runtime.torch_threads() as run:
                seen = run(lambda item: (item, torch.get_num_threads(), torch.is_inference_mode_enabled()), range(5))
                with pytest.raises(ZeroDivisionError):
                    run(lambda item: 1 // item, [1, 0])
            assert seen == [(item, 1, True) for item in range(5)]
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
