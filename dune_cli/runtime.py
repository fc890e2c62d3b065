"""Device, number type and threads: what `--device` and `--dtype` mean on this machine, and work in several threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from dune_cli.errors import UserError

if TYPE_CHECKING:
    import torch

K = TypeVar("K")
T = TypeVar("T")
R = TypeVar("R")

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
MALLOC = {-3: 4 << 20, -1: 64 << 20}  # by the numbers of malloc.h: M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, in bytes


def cpu_flags() -> frozenset[str]:
    """The processor's feature flags as Linux lists them; empty where /proc/cpuinfo is absent."""
    return frozenset(_cpu_field("flags", "Features").split())


def cpu_vendor() -> str:
    """The processor's maker as Linux names it ("AuthenticAMD", "GenuineIntel"); empty where it does not."""
    return _cpu_field("vendor_id").strip()


def _cpu_field(*names: str) -> str:
    """The value of the first line of /proc/cpuinfo with one of these names; empty without such a line."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as file:  # noqa: PTH123
            for line in file:
                if line.startswith(names):
                    return line.partition(":")[2]
    except OSError:
        pass
    return ""


def cpu_has_fast_bfloat16() -> bool:
    """True with AMX, where bfloat16 matrix products were measured 3-3.5 times as fast as float32.

    On a Xeon with AVX512-BF16 but no AMX they were measured 1.5 times as slow (2048 x 512 x 512: 13.7 and 9.0 ms).
    """
    return "amx_bf16" in cpu_flags()


def available_threads() -> int:
    """Threads that this process may use: by its affinity mask, its cgroup's quota, and OMP_NUM_THREADS."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    limits = [allowed, _cgroup_processors(), int(asked) if asked.isdecimal() else None]
    return max(1, min(limit for limit in limits if limit))


def ordered_map(function: Callable[[T], R], items: Iterable[T], threads: int | None = None) -> Iterator[R]:
    """`function(item)` of all items in their order, in `threads` threads (None: the available ones).

    The items are taken in the caller's thread, three a thread ahead of their results. What a call raises is raised when
    its turn comes, and calls that have not begun are dropped.
    """
    threads = threads or available_threads()
    if threads == 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 3 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def use_torch_threads(count: int | None) -> Iterator[None]:
    """`count` CPU threads for torch in the caller's thread inside the context; None leaves them as they are."""
    import torch

    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def torch_threads() -> Iterator[Callable[[Callable[[T], R], Iterable[T]], list[R]]]:
    """A function like `map` whose calls run at once, each of which computes with torch by one thread.

    As many threads as torch may use in the caller's; with one, the calls run in the caller's thread. So the results do
    not depend on the number of threads, which torch's own division of a product does.
    """
    import torch

    threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()
    if threads == 1:
        yield lambda function, items: list(map(function, items))
        return
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def run(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        def call(item: T) -> R:
            with torch.inference_mode(inference):
                return function(item)

        with use_torch_threads(1):
            return list(pool.map(call, items))

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)


class LaterValues(Mapping[K, R]):
    """The values of `jobs`, key -> function, which a thread of its own computes; a value that is asked for is waited
    for. With one thread available they are computed at once."""

    def __init__(self, jobs: Mapping[K, Callable[[], R]]) -> None:
        pool = ThreadPoolExecutor(1)
        self._values = {key: pool.submit(job) for key, job in jobs.items()}
        pool.shutdown(wait=available_threads() == 1)

    def __getitem__(self, key: K) -> R:
        return self._values[key].result()

    def __iter__(self) -> Iterator[K]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _cgroup_processors(root: str = "/sys/fs/cgroup") -> int | None:
    """Whole processors, rounded up, of the quota that a container has (cgroup v2, then v1); None without one."""
    try:
        if os.path.exists(f"{root}/cpu.max"):  # noqa: PTH110
            with open(f"{root}/cpu.max", encoding="ascii") as file:  # noqa: PTH123
                quota, period = file.read().split()[:2]
        else:
            with open(f"{root}/cpu/cpu.cfs_quota_us", encoding="ascii") as file:  # noqa: PTH123
                quota = file.read()
            with open(f"{root}/cpu/cpu.cfs_period_us", encoding="ascii") as file:  # noqa: PTH123
                period = file.read()
        return None if quota == "max" or int(quota) <= 0 else max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return None


def limit_threads() -> None:
    """Tells libraries that are imported later how many threads they may start; what the user has set stays.

    OpenMP (torch, open3d, ceres), OpenBLAS, MKL and OpenCV read these variables when they start. On a whole machine
    they keep their own defaults, but for OpenBLAS (numpy and scipy), which gets one thread: its threads wait for each
    other by spinning, and on two busy processors 2,000 products of 256 x 128 by 128 x 1000 took 30.8 processor seconds
    instead of 1.2. OpenMP's threads sleep while they wait, for the same reason: beside other work `dune reloc` of two
    photos took 56 processor seconds and 85 s of time with two threads that spin, and 3.9 and 6.0 with two that sleep.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if available_threads() >= (os.cpu_count() or 1):
        return
    count = str(available_threads())
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"):
        os.environ.setdefault(name, count)


def return_freed_memory() -> bool:
    """Has malloc give large blocks back to the system when they are freed; whether it does. Only glibc's is told.

    By default glibc takes blocks of up to 32 MiB from its heaps once such a block was freed. The heaps then grow over
    thousands of photos of several sizes, as long-lived small blocks lie between the large ones. What the user has set
    (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_) stays. `dune encode --shards` of 140 photos of 10 to 14 megapixels
    took 984 MB at most instead of 1,059, and 0.03 processor seconds a photo more, for new pages.
    """
    import ctypes
    import platform

    if platform.libc_ver()[0] != "glibc":
        return False
    if any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    done = [mallopt(number, value) for number, value in MALLOC.items()]
    return all(done)


def check_device(name: str) -> None:
    """UserError for what is no device's name anywhere. Imports nothing."""
    kind, separator, number = name.partition(":")
    if kind not in DEVICES or (separator and not (kind == "cuda" and number.isdecimal())):
        raise UserError(f"unknown device {name!r}; allowed: {', '.join(DEVICES)}, cuda:N")


def pick_device(name: str = "auto") -> torch.device:
    """`auto` takes cuda, then mps, then cpu. Raises UserError for a device that this machine does not have."""
    check_device(name)
    import torch

    kind = name.partition(":")[0]
    have = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind == "auto":
        return torch.device(next(k for k in ("cuda", "mps", "cpu") if have[k]))
    if not have[kind]:
        raise UserError(
            f"device {name!r} is not available here; use --device auto or cpu ('dune doctor' lists devices)"
        )
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number type of the trunk's matrix products. `auto`: bfloat16 where `device` is fast at it, else float32."""
    import torch

    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}; allowed: {', '.join(DTYPES)}")
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu" and cpu_has_fast_bfloat16():
        return torch.bfloat16
    return torch.float32
