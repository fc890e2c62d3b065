"""`dune ARGS` within this process, so that torch is imported once, with the result of a real process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

from click.testing import CliRunner

from dune_cli import console
from dune_cli.cli import main

SILENT = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # in a real process

# a real process whose `--matcher sift` is that of the fixture quick_sift
QUICK_SIFT = """
from dune_cli.cli import main
from dune_cli.matchers import sift
sift.build = lambda *_: sift.Sift(320, 1500)
main()
"""


def run(*arguments: object) -> CompletedProcess[str]:
    """What `dune ARGUMENTS` prints, also what C++ code prints past Python, and its exit code.

    A traceback, where the command lets an exception through, and Python's warnings are in `stderr`.
    """
    words = [str(argument) for argument in arguments]
    console.set_quiet(False)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", ["dune", *words]))
        stack.enter_context(_warnings_on_stderr())
        native = [stack.enter_context(_descriptor(number)) for number in (1, 2)]
        result = CliRunner().invoke(main, words, prog_name="dune")
        ctypes.CDLL(None).fflush(None)
        beyond = [Path(file).read_bytes().decode(errors="replace") for file in native]
    console.set_quiet(False)
    stderr = result.stderr + beyond[1]
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        stderr += "".join(traceback.format_exception(result.exception))
    return CompletedProcess(["dune", *words], result.exit_code, result.stdout + beyond[0], stderr)


@contextlib.contextmanager
def _descriptor(number: int) -> Iterator[str]:
    """A file that holds what is written to a file descriptor meanwhile."""
    before = os.dup(number)
    with tempfile.NamedTemporaryFile() as file:
        os.dup2(file.fileno(), number)
        try:
            yield file.name
        finally:
            os.dup2(before, number)
            os.close(before)


@contextlib.contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    def show(message: object, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
        sys.stderr.write(warnings.formatwarning(str(message), category, filename, lineno))

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for category in SILENT:
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield
