"""Shared fixtures: where the parity files, the example photos and (if present) the shared data lie."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest runs two workers
ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=500, help="cases of each family of damaged files (tests/fuzz)")
    parser.addoption("--fuzz-from", type=int, default=0, help="the number of the first case")


@pytest.fixture(scope="session")
def parity() -> Path:
    """The folder of the parity fixtures."""
    return ROOT / "tests" / "parity"


@pytest.fixture(scope="session")
def example_photos() -> Path:
    """The folder of the free example photos that the project carries."""
    return ROOT / "examples" / "photos"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos with ground truth that the project does not carry; the test skips where they are absent."""
    folder = Path(os.environ.get("DUNE_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("needs the shared data folder (set DUNE_SHARED)")
    return folder


@pytest.fixture(autouse=True)
def _own_weights_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own weights."""
    monkeypatch.setenv("DUNE_WEIGHTS", str(tmp_path_factory.mktemp("weights")))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
    monkeypatch.setenv("DUNE_OFFLINE", "1")


@pytest.fixture
def dune() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `dune ARGS` as a real process and returns what it printed and its exit code."""

    def run(*arguments: str | Path, timeout: float = 300, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dune_cli.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)

    return run
