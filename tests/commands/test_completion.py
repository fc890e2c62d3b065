"""`dune completion`, and what shells are told to propose."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from dune_cli.cli import main


def proposed(*words: str) -> list[tuple[str, str]]:
    """(type, value) of what is proposed for the last word."""
    complete = BashComplete(main, {}, "dune", "_DUNE_COMPLETE")
    return [(item.type, item.value) for item in complete.get_completions(list(words[:-1]), words[-1])]


def test_commands_options_and_choices() -> None:
    assert proposed("rec") == [("plain", "reconstruct")]
    assert ("plain", "pairs") in proposed("eval", "p")
    assert ("plain", "--overwrite") in proposed("depth", "--o")
    assert proposed("depth", "--dtype", "b") == [("plain", "bfloat16")]


def test_models_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert proposed("depth", "--model", "da3-ba") == [("plain", "da3-base"), ("file", "da3-ba")]
    assert proposed("depth", "ph") == [("file", "ph")]
    assert proposed("reloc", "--map", "mo")[-1][0] in ("file", "dir")
    assert proposed("train", "depth", "-o", "x") == [("dir", "x")]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dune.toml").write_text("nonsense = 1")
    assert ("plain", "--size") in proposed("depth", "--si")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0 and f"_DUNE_COMPLETE={shell}_complete" in result.output
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=result.output, text=True, check=False).returncode == 0
    assert CliRunner().invoke(main, ["completion", "tcsh"]).exit_code == 2
