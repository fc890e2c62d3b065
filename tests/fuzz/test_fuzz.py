"""Every family of files that others wrote, damaged in hundreds of ways (harness.py says how a family is made)."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from fuzz.harness import fuzz, whole_samples

FAMILIES = sorted(path.stem.removeprefix("family_") for path in Path(__file__).parent.glob("family_*.py"))


@pytest.mark.timeout(0)  # the harness has its own limit, a case
@pytest.mark.parametrize("name", FAMILIES)
def test_damaged_files_are_read_or_refused_with_one_sentence(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "made").mkdir()
    samples = importlib.import_module(f"fuzz.family_{name}").samples(tmp_path / "made")
    whole_samples(samples, tmp_path)
    counts = fuzz(name, samples, request.config.getoption("--fuzz"), request.config.getoption("--fuzz-from"), tmp_path)
    assert counts["refused"] or request.config.getoption("--fuzz") < 100, "no damage was noticed"
