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
    script = TESTS / "support" / "killed_commands.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path, "--kills", "1"], capture_output=True, text=True, timeout=580, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("all equal") == 10
