"""examples/ablation_distill.py: one command, one table with spread."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from support import EXAMPLES


@pytest.mark.slow
def test_one_command_one_table(
    teachers: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two = [teachers.split(",")[0], teachers.split(",")[2]]
    data = [word for name in ("dinov2", "multihmr") for word in ("--data", f"{name}={photos}")]
    small = ["--student", "vit:64x1", "--size", "28", "--steps", "2", "--batch-size", "2", "--seeds", "2"]
    kinds = ["--sharing", "none,own_data", "--projectors", "tp,sp"]
    script = str(EXAMPLES / "ablation_distill.py")
    words = [script, "--teachers", ",".join(two), *data, "-o", str(tmp_path / "runs"), *small, *kinds]
    monkeypatch.setattr(sys, "argv", words)
    for _ in range(2):  # the second time everything is there
        runpy.run_path(script, run_name="__main__")
        stdout = capsys.readouterr().out
        lines = stdout.splitlines()
        assert lines[0] == "| sharing | projector | dinov2 | multihmr | mean |" and len(lines) == 2 + 4
        assert all(re.fullmatch(r"\| \S+ \| \S+ (\| -?\d\.\d{3} ± \d\.\d{3} ){3}\|", line) for line in lines[2:])
        assert (tmp_path / "runs" / "table.md").read_text() == stdout
