"""Independent jobs in this process, in several processes, or on the machines of a Ray cluster.

The result of a job depends on its item alone, so all engines give the same results in the same order. A job whose
worker is killed is done again.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import re
import secrets
import signal
import socket
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

from dune_cli import console, optional, progress, runtime, signals
from dune_cli.errors import DuneError, JobFailed, UserError

T = TypeVar("T")
R = TypeVar("R")
Setup = Callable[[], Callable[[T], Iterable[R]]]  # called once in each process; gives the function of an item
AHEAD = 3  # items a worker that are handed out before their results are needed: memory stays bounded
RETRIES = 3  # of a job whose worker ended
ANSWER_S = 5.0  # within which a cluster's address answers
START_S = 60.0  # within which Ray starts or lets this process in
LOCAL = "local"  # --ray-address of Ray on this machine
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
_END = object()
_HTTP2_SETTINGS = b"\x04"  # the type of the frame that a server sends first
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _HTTP2_SETTINGS + bytes(5)
_ADDRESS = re.compile(r"(?:ray://)?(?P<host>\[[0-9a-fA-F:]+\]|[\w.-]+):(?P<port>\d{1,5})")


class Engine(ABC):
    """`workers`: how many items are worked on at the same time."""

    workers: int = 1

    @abstractmethod
    def map(self, setup: Setup[T, R], items: Iterable[T]) -> Iterator[R]:
        """The results of `setup()(item)` of all items, in the order of the items.

        `setup`, items and results are pickled where other processes do the work. What a job raises is raised here when
        its turn comes. JobFailed where a job's worker ends again and again.
        """


class InProcess(Engine):
    """All items one after the other in this process; each result as soon as it is known."""

    def map(self, setup: Setup[T, R], items: Iterable[T]) -> Iterator[R]:
        function = setup()
        for item in items:
            yield from function(item)


@dataclass
class _Job:
    item: Any
    future: Future[Any] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it needs not be handed out again: it has a result, or raised an error of its own."""
        if self.future is None or not self.future.done() or self.future.cancelled():
            return False
        return not isinstance(self.future.exception(), BrokenProcessPool)


class ProcessPool(Engine):
    """`workers` processes on this machine, of one thread each: networks round by the number of threads, and so the
    results are the same for any number of workers."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def map(self, setup: Setup[T, R], items: Iterable[T]) -> Iterator[R]:
        source, jobs, failures = iter(items), deque[_Job](), 0
        pool: ProcessPoolExecutor | None = None
        others = set(multiprocessing.active_children())
        done = False
        try:
            while True:
                while len(jobs) < AHEAD * self.workers and (item := next(source, _END)) is not _END:
                    jobs.append(_Job(item))
                if not jobs:
                    done = True
                    return
                try:
                    if pool is None:
                        pool = self._started(setup)
                    self._submit(pool, jobs)
                    assert jobs[0].future is not None
                    results, notes = jobs[0].future.result()
                except BrokenProcessPool as error:
                    failures += 1
                    if failures > RETRIES:
                        raise JobFailed(
                            f"worker processes ended {failures} times in a row without a result (killed, or the memory "
                            "is too small); run it with fewer --workers"
                        ) from error
                    console.note("a worker process ended; what it was doing is done again")
                    assert pool is not None
                    pool.shutdown(wait=True, cancel_futures=True)
                    pool = None
                    continue
                failures = 0
                jobs.popleft()
                console.repeat(notes)
                yield from results
        finally:
            if pool is not None:
                if not done:
                    for process in set(multiprocessing.active_children()) - others:
                        process.terminate()
                pool.shutdown(wait=True, cancel_futures=True)

    def _started(self, setup: Setup[Any, Any]) -> ProcessPoolExecutor:
        # not forked: the threads of torch and OpenMP do not survive that
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.workers, context, _start_worker, (setup,))

    def _submit(self, pool: ProcessPoolExecutor, jobs: Iterable[_Job]) -> None:
        """Hands out the jobs that have no result yet. The pool starts its processes here, with this environment."""
        with _environment(dict.fromkeys(THREAD_VARIABLES, "1")):
            for job in jobs:
                if job.future is None or (job.future.done() and not job.has_ended):
                    job.future = pool.submit(_work, job.item)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


_setup: Setup[Any, Any] | None = None  # of a worker process
_functions: dict[str, Callable[[Any], Iterable[Any]]] = {}  # of a worker process, by the key of their setup


def _start_worker(setup: Setup[Any, Any]) -> None:
    """Ctrl-C reaches the whole terminal; the command's own process ends its workers, or they end with it."""
    global _setup
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _setup = setup


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(item: Any) -> tuple[list[Any], list[console.Note]]:
    assert _setup is not None
    return _work_by("", _setup, item)


def _work_by(key: str, setup: Setup[Any, Any], item: Any) -> tuple[list[Any], list[console.Note]]:
    """The results of an item and the notes of the work. A process keeps the function of one setup."""
    progress.quiet = True
    with console.collected() as notes:
        if key not in _functions:
            _functions.clear()
            _functions[key] = setup()
        return list(_functions[key](item)), notes


class RayEngine(Engine):
    """Ray on this machine, with `workers` of its processors (None: all), or a cluster's `address`, HOST:PORT.

    on_gpus: each worker gets a GPU of its own, if the machine or cluster has any. Every machine of a cluster needs
    dune, and the photos and the work folder at the same paths. PackageMissing without Ray; UserError for what is no
    address; JobFailed for one that does not answer.
    """

    def __init__(self, address: str = LOCAL, workers: int | None = None, on_gpus: bool = False) -> None:
        if address != LOCAL:
            check_answers(address)
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        threads = workers or runtime.available_threads()
        local = {"address": "local", "num_cpus": threads, "include_dashboard": False}
        with signals.kept():  # Ray takes over SIGTERM
            self._ray = optional.require("ray", "--engine ray", extra="ray")
            # Ray prints what it says of its workers on stdout, which is for results
            self._ray._private.worker.print_to_stdstream = _note_of_ray
            settings = local if address == LOCAL else {"address": address}
            self._start({**settings, "log_to_driver": False, "logging_level": logging.ERROR}, address)
        resources = self._ray.cluster_resources()
        self.workers = threads if address == LOCAL else max(1, int(resources.get("CPU", 1)))
        self._gpus = 1 if on_gpus and resources.get("GPU", 0) >= 1 else 0  # of a worker
        if self._gpus:
            self.workers = min(self.workers, int(resources["GPU"]))

    def _start(self, settings: dict[str, Any], address: str) -> None:
        """`ray.init`. Where something else than Ray answers at an address, it waits for minutes."""
        errors: list[Exception] = []

        def start() -> None:
            try:
                self._ray.init(**settings)
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=start, daemon=True)
        if address == LOCAL:
            start()  # not in the thread: the system ends Ray's processes with the thread that started them
        else:
            with _quiet_errors():
                thread.start()
                thread.join(START_S)
        where = "on this machine" if address == LOCAL else f"at {address}"
        if thread.is_alive():
            raise JobFailed(f"Ray {where} gave no answer within {START_S:.0f} s; see whether it runs with 'ray status'")
        if errors:
            raise JobFailed(
                f"Ray {where} does not start ({_first_line(errors[0])}); join this machine to the cluster with "
                "'ray start', or use --engine processes"
            ) from errors[0]

    def map(self, setup: Setup[T, R], items: Iterable[T]) -> Iterator[R]:
        ray, key = self._ray, secrets.token_hex(8)
        task = ray.remote(num_cpus=1, num_gpus=self._gpus, max_retries=RETRIES)(_work_by)
        shared, source, jobs = ray.put(setup), iter(items), deque[Any]()
        try:
            while True:
                while len(jobs) < AHEAD * self.workers and (item := next(source, _END)) is not _END:
                    jobs.append(task.remote(key, shared, item))
                if not jobs:
                    return
                results, notes = self._result(jobs[0])
                jobs.popleft()
                console.repeat(notes)
                yield from results
        finally:
            for job in jobs:
                ray.cancel(job, force=True)

    def _result(self, job: Any) -> tuple[list[Any], list[console.Note]]:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(job)
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, DuneError):
                raise error.cause from None
            raise
        except exceptions.RayError as error:
            raise JobFailed(
                f"a worker of Ray ended {RETRIES + 1} times without a result ({_first_line(error)}); see the logs of "
                "Ray, or use --engine processes"
            ) from error

    def close(self) -> None:
        with signals.kept():
            self._ray.shutdown()


@contextlib.contextmanager
def _quiet_errors() -> Iterator[None]:
    """Nothing that Ray's C++ code writes on standard error, line after line while it waits, is shown."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _note_of_ray(data: dict[str, Any], *_: Any, **__: Any) -> None:
    console.note(f"Ray: {' '.join(' '.join(data['lines']).split())[:300]}")


def check_answers(address: str) -> None:
    """UserError for what is no address of a Ray cluster, JobFailed where nothing answers, or something that does not
    speak gRPC (HTTP/2, RFC 9113, section 3.4)."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise UserError(f"--ray-address {address!r} is no address; give HOST:PORT of a Ray cluster, or local")
    encrypted = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
    try:
        with socket.create_connection((match["host"].strip("[]"), int(match["port"])), ANSWER_S) as connection:
            if not encrypted:
                connection.sendall(_HTTP2_PREFACE)
                if connection.recv(4)[3:] != _HTTP2_SETTINGS:
                    raise OSError("what answers is no Ray")
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise JobFailed(
            f"no Ray cluster answers at {address} within {ANSWER_S:.0f} s ({reason}); start one with 'ray start "
            "--head', or leave --ray-address out to run on this machine"
        ) from error


def _first_line(error: Exception) -> str:
    lines: Sequence[str] = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def open_engine(name: str, workers: int | None, ray_address: str | None, on_gpus: bool = False) -> Iterator[Engine]:
    """The engine `name`, processes | ray, which is closed after the block. Without `workers` it is this process, with
    all its threads. on_gpus: of Ray, see `RayEngine`."""
    if name != "ray":
        if ray_address is not None:
            raise UserError("--ray-address belongs to --engine ray; add that, or leave --ray-address out")
        yield InProcess() if workers is None else ProcessPool(workers)
        return
    engine = RayEngine(ray_address or LOCAL, workers, on_gpus)
    try:
        yield engine
    finally:
        engine.close()
