"""Runs a child that hears of everything Python does for a file: the audit events of PEP 578.

In the child: `from support import audited; with audited.listening(): ...`; then `audited.heard` has what was done and
not allowed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# what no reading of a file does
FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.startfile", "os.kill",
    "os.killpg", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "os.chown", "os.putenv", "os.unsetenv", "os.chdir", "shutil.", "subprocess.", "socket.", "ctypes.", "exec",
    "compile", "import", "code.__new__", "function.__new__", "marshal.", "pickle.", "urllib.", "http.", "ftplib.",
    "webbrowser.", "pty.", "signal.pthread_kill", "sys.set", "sys._getframe", "sys.addaudithook", "tempfile.",
    "sqlite3.", "builtins.input",
)  # fmt: skip
heard: list[str] = []
_on = False
_QUIET = {"builtins.id", "object.__getattr__"}  # heard a million times


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if not _on or event in _QUIET:
        return
    if event == "open":
        _, mode, flags = (*arguments, None, None, None)[:3]
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
            heard.append(f"open {arguments!r}"[:200])
    elif any(event == name or (name.endswith(".") and event.startswith(name)) for name in FORBIDDEN):
        heard.append(f"{event} {arguments!r}"[:200])


@contextmanager
def listening() -> Iterator[None]:
    """Writes down, in `heard`, what is forbidden."""
    global _on
    _on = True
    try:
        yield
    finally:
        _on = False


def install() -> None:
    """Hears from now on; Python has no way to stop it."""
    sys.addaudithook(_hook)
