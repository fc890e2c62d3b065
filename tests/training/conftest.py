"""Small teachers, small photos, and `dune distill` within this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from dune_cli.cli import main
from support.teacher_files import write_photos, write_teachers
from support.training_words import words


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks are quicker so, and other work on the machine disturbs less."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`--teachers` of three official files."""
    return write_teachers(tmp_path_factory.mktemp("teachers"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, example_photos: Path) -> Path:
    """A folder of 24 small real photos."""
    return write_photos(tmp_path_factory.mktemp("photos") / "all", example_photos)


@pytest.fixture(scope="session")
def distill() -> Callable[..., Result]:
    """`dune distill` with small settings, which the arguments may override."""

    def run(teachers: str, data: Path | list[str], output: Path, *arguments: object) -> Result:
        return CliRunner().invoke(main, words(teachers, data, output, *arguments))

    return run


@pytest.fixture
def distill_process(dune_process: Callable[..., Any]) -> Callable[..., Any]:
    """The same as a real process."""

    def run(teachers: str, data: Path | list[str], output: Path, *arguments: object) -> Any:
        return dune_process(*words(teachers, data, output, *arguments))

    return run


@pytest.fixture(scope="session")
def log() -> Callable[[Path], list[dict[str, Any]]]:
    """The entries of a run's log."""
    return lambda output: [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
