"""Shared fixtures: `dune` in this process and as a real one, the parity files, the example photos, the shared data.

`pytest` runs everything on two workers. The tests of a folder of the package, in this process and with its output:
`pytest -n 0 -s tests/sfm tests/commands/test_reloc.py`; without those of more than about ten seconds: `-m "not slow"`.
Helpers are in tests/support and are imported as `support.NAME`.

No test reads the user's home, cache or weights. The folders are moved when this file is imported, before any test
module, so that what a module decides at its top (skipif) and what its tests find are the same.
"""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _leave_home() -> Path:
    """Home, caches and weights of this process and its children are empty temporary folders; nothing is downloaded."""
    home = Path(tempfile.mkdtemp(prefix="dune-tests-home-"))
    os.environ.setdefault("PYTHONUSERBASE", site.getuserbase())  # packages may be installed in the user's home
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "XDG_"))]:
        del os.environ[name]
    folders = {
        "HOME": "",
        "USERPROFILE": "",
        "XDG_CACHE_HOME": "cache",
        "XDG_CONFIG_HOME": "config",
        "XDG_DATA_HOME": "data",
        "TORCH_HOME": "torch",
        "HF_HOME": "huggingface",
        "DUNE_WEIGHTS": "weights",
    }
    for name, folder in folders.items():
        os.environ[name] = str(home / folder)
    os.environ["DUNE_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    return home


HOME = _leave_home()
os.environ.setdefault("DUNE_TESTS_SHARED", str(HOME))  # tests/support/shared.py; workers and children inherit it
os.environ["DUNE_PROGRESS_S"] = "3600"  # what a process says must not depend on how busy the machine is
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest runs two workers


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `weights` skip, all for one reason, where the packages that hold them are not installed."""
    from dune_cli.checkpoints import registry, weights_folder

    names = [name for mark in item.iter_markers("weights") for name in mark.args]
    if any((entry := registry.find(name)) is None or weights_folder.find_present(entry) is None for name in names):
        pytest.skip("needs published weights out of packages of the registry; .ci/run shows how they are installed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=200, help="cases of each family of damaged files (tests/fuzz)")
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
    """Each test has its own weights folder, so that none sees what another put there."""
    monkeypatch.setenv("DUNE_WEIGHTS", str(tmp_path_factory.mktemp("weights")))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
    monkeypatch.setenv("DUNE_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _notes_show() -> None:
    """A test that ran a command with --quiet silences no other."""
    from dune_cli import console

    console.set_quiet(False)


@pytest.fixture(scope="module")
def quick_sift() -> Iterator[None]:
    """`--matcher sift` works at the size of the made-up photos, 320 px, with at most 1,500 keypoints."""
    from dune_cli.matchers import sift

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sift, "build", lambda *_: sift.Sift(320, 1500))
        yield


@pytest.fixture(scope="module")
def quick_dense() -> Iterator[None]:
    """`--quality low` makes depth maps of 160 px, with few planes and source views."""
    from dune_cli.mvs.quality import QUALITIES, QualityPreset

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(QUALITIES, "low", QualityPreset(160, 48, 3, 1))
        yield


@pytest.fixture
def dune() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `dune ARGS` in this process and returns what it printed and its exit code."""
    from support.command_line import run

    return run


@pytest.fixture
def dune_process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same as a real process, which imports torch anew: for signals, what is imported, and a few whole runs."""

    def run(*arguments: object, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dune_cli.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)

    return run
