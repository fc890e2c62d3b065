"""examples/ablation_distill.py: one command, one table with spread."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT


@pytest.mark.slow
def test_one_command_one_table(teachers: str, photos: Path, tmp_path: Path) -> None:
    two = [teachers.split(",")[0], teachers.split(",")[2]]
    data = [word for name in ("dinov2", "multihmr") for word in ("--data", f"{name}={photos}")]
    small = ["--student", "vit:64x1", "--size", "28", "--steps", "2", "--batch-size", "2", "--seeds", "2"]
    kinds = ["--sharing", "none,own_data", "--projectors", "tp,sp"]
    command = [sys.executable, ROOT / "examples" / "ablation_distill.py", "--teachers", ",".join(two), *data]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for _ in range(2):  # the second time everything is there
        result = subprocess.run(
            [*command, "-o", tmp_path / "runs", *small, *kinds],
            capture_output=True, text=True, timeout=500, env=environment, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-2000:]
        lines = result.stdout.splitlines()
        assert lines[0] == "| sharing | projector | dinov2 | multihmr | mean |" and len(lines) == 2 + 4
        assert all(re.fullmatch(r"\| \S+ \| \S+ (\| -?\d\.\d{3} ± \d\.\d{3} ){3}\|", line) for line in lines[2:])
        assert (tmp_path / "runs" / "table.md").read_text() == result.stdout
