"""Ctrl-C and SIGTERM end every command within seconds, whatever it is doing, and nothing unfinished stays on the disk.

A signal first unwinds the command as an exception. C++ code may hold Python's lock for a minute (open3d's meshing) or
swallow an exception, so a small helper process, forked before anything heavy is imported, is told of the signal by the
interpreter's C handler (`signal.set_wakeup_fd`). It ends the process `GRACE_SECONDS` later, and removes the temporary
files that the process had named; it does the same when the process is killed otherwise.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

GRACE_SECONDS = 2.0
_KINDS = (signal.SIGINT, signal.SIGTERM)
_ADDED, _REMOVED = b"+", b"-"  # as bytes these are no signal's number that is handled here
_LONGEST_PATH = 2048  # a message is one write, which others do not cut in two
_guarded = False
_received: int | None = None
_pipe: int | None = None
_helper: int | None = None


def received() -> int | None:
    """The first of SIGINT and SIGTERM that came since `guard`."""
    return _received


def guarded() -> bool:
    """Whether `guard` is in force."""
    return _guarded


def guard() -> None:
    """Handles SIGINT and SIGTERM in this process, which is a command's own, from now on.

    One that is ignored (a job in the background) stays ignored. Where processes cannot be forked, the signals unwind
    the command and nothing more.
    """
    global _guarded, _pipe, _helper
    if _guarded or threading.current_thread() is not threading.main_thread():
        return
    if hasattr(os, "fork"):
        ours, theirs = os.pipe()
        parent = os.getpid()
        try:
            child = os.fork()
        except OSError:  # too many processes
            os.close(ours)
            os.close(theirs)
        else:
            if child == 0:
                _help(ours, theirs, parent)
            os.close(ours)
            os.set_blocking(theirs, False)
            signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
            _pipe, _helper = theirs, child
    _guarded = True
    _install()
    sys.unraisablehook = _raise_again


def _install() -> None:
    for kind in _KINDS:
        if signal.getsignal(kind) is not signal.SIG_IGN:
            signal.signal(kind, _unwind if kind != _received else signal.SIG_DFL)
            if kind != _received:
                _once(kind)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """The handlers are after the block what they were before it, whatever a library that it imports sets."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {kind: signal.getsignal(kind) for kind in _KINDS}
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, _KINDS) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if _guarded:
            _install()
        else:
            for kind, handler in handlers.items():
                if handler is not None:
                    signal.signal(kind, handler)
        if masked is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Without `guard`, in a process that is not the command's own: SIGTERM unwinds the block as Ctrl-C does, so that
    temporary files go; the handler is afterwards what it was."""
    if _guarded or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def finish(code: int) -> int:
    """Ends the helper; the exit code that the command leaves with: 130 or 143 after a signal, else `code`."""
    global _guarded, _pipe, _helper
    if not _guarded:
        return code
    for kind in _KINDS:
        if signal.getsignal(kind) is _unwind:
            signal.signal(kind, signal.SIG_DFL if _received is None else signal.SIG_IGN)
    _guarded = False
    if _pipe is not None:
        signal.set_wakeup_fd(-1)
        os.close(_pipe)
        _pipe = None
        if _helper is not None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(_helper, 0)
            _helper = None
    return code if _received is None else 128 + _received


@contextlib.contextmanager
def temporary(path: str | Path) -> Iterator[None]:
    """While the block runs, `path` (a file or folder, which need not exist) goes when the process is ended by force."""
    _tell(_ADDED, path)
    try:
        yield
    finally:
        _tell(_REMOVED, path)


def _unwind(number: int, frame: FrameType | None) -> None:
    global _received
    if _received is None:
        _received = number
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _raise_again(lost: Any) -> None:
    """A signal's exception in a destructor or a callback is lost; Python would print it and go on."""
    if _received is not None and issubclass(lost.exc_type, (KeyboardInterrupt, SystemExit)):
        signal.signal(_received, _unwind)
        _once(_received)
        # at once, it would be lost here, too
        later = threading.Timer(0.05, signal.pthread_kill, [threading.main_thread().ident, _received])
        later.daemon = True
        with contextlib.suppress(RuntimeError):  # the interpreter ends
            later.start()
    else:
        sys.__unraisablehook__(lost)


def _once(kind: int) -> None:
    """The handler of `kind` runs once; the second time the system ends the process, as it does without handlers.

    Python cannot say so; the C library can, where it has System V's `signal`.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "sysv_signal"):
        return
    for function in (libc.signal, libc.sysv_signal):
        function.restype, function.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    libc.sysv_signal(kind, libc.signal(kind, None))


def _tell(what: bytes, path: str | Path) -> None:
    name = os.fsencode(os.path.abspath(path))  # noqa: PTH100 (of any path)
    if _pipe is not None and len(name) <= _LONGEST_PATH:
        with contextlib.suppress(OSError):  # the helper is gone
            os.write(_pipe, what + len(name).to_bytes(2, "little") + name)


def _help(ours: int, theirs: int, parent: int) -> None:
    """The helper's life: until the process has ended."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for kind in (*_KINDS, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
            signal.signal(kind, signal.SIG_IGN)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):  # whoever reads the command's output waits for nobody else
            os.dup2(nothing, descriptor)
        os.closerange(3, ours)
        os.closerange(ours + 1, 1024)
        _remove(_watch(ours, parent))
        code = 0
    finally:
        os._exit(code)


def _watch(pipe: int, parent: int) -> set[bytes]:
    """Ends the process some time after a signal; the temporary files that it leaves."""
    left: set[bytes] = set()
    data = b""
    ends: list[tuple[float, int]] = []  # when to send which signal
    while True:
        wait = max(0.0, ends[0][0] - time.monotonic()) if ends else None
        if not select.select([pipe], [], [], wait)[0]:
            if os.getppid() != parent:
                return left
            with contextlib.suppress(OSError):
                os.kill(parent, ends.pop(0)[1])
            continue
        more = os.read(pipe, 1 << 16)
        if not more:
            return left
        data += more
        while data:
            if data[:1] not in (_ADDED, _REMOVED):
                if not ends and data[0] in _KINDS:
                    now = time.monotonic()
                    ends = [(now + GRACE_SECONDS, data[0]), (now + GRACE_SECONDS + 0.5, signal.SIGKILL)]
                data = data[1:]
                continue
            length = int.from_bytes(data[1:3], "little")
            if len(data) < 3 or len(data) < 3 + length:
                break
            (left.add if data[:1] == _ADDED else left.discard)(data[3 : 3 + length])
            data = data[3 + length :]


def _remove(paths: set[bytes]) -> None:
    if not paths:
        return
    import shutil

    for path in paths:
        with contextlib.suppress(OSError):
            if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114 (bytes)
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)  # noqa: PTH108 (bytes)
