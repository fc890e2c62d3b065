"""Killed at random moments and started again, the long commands write what they write without kills.

By hand, at many moments: `python tests/support/killed_commands.py FOLDER --kills 30`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support import TESTS


@pytest.mark.slow
@pytest.mark.weights("efficientnet-lite2")
def test_killed_commands_go_on_and_write_the_same(tmp_path: Path) -> None:
    _kill(tmp_path, "reconstruct,mapfree,distill,matcher", kills=1, compared=8)


@pytest.mark.slow
def test_a_killed_index_goes_on_and_is_the_same(tmp_path: Path) -> None:
    _kill(tmp_path, "index", kills=3, compared=2)


def _kill(folder: Path, jobs: str, kills: int, compared: int) -> None:
    script = TESTS / "support" / "killed_commands.py"
    words = [sys.executable, script, folder, "--kills", str(kills), "--jobs", jobs]
    done = subprocess.run(words, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("all equal") == compared
