"""Files that cost time to make and that the processes of one test run share: weights, rendered photos."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

VARIABLE = "DUNE_TESTS_SHARED"  # the folder; tests/conftest.py sets it


def shared_file(name: str, write: Callable[[Path], object]) -> Path:
    """The file NAME, written by the first that asks for it. Nobody changes it afterwards."""
    if VARIABLE not in os.environ:  # a helper that is run by hand
        os.environ[VARIABLE] = tempfile.mkdtemp(prefix="dune-tests-shared-")
        atexit.register(shutil.rmtree, os.environ[VARIABLE], ignore_errors=True)
    path = Path(os.environ[VARIABLE]) / name
    if not path.exists():
        temporary = path.with_name(f"{os.getpid()}-{name}")
        write(temporary)
        temporary.replace(path)
    return path
