"""Lines of a run that was stopped: they are kept, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dune_cli.errors import UserError
from dune_cli.io.resumable_lines import ResumableLines, is_unfinished


def write(target: Path, settings: dict[str, Any], values: range, stop: int = 99, overwrite: bool = False) -> int:
    """Adds {"n": value} for the values that are not kept; an error before the value `stop`. Returns what was kept."""
    lines = ResumableLines(target, settings, overwrite)
    done = lines.keep(lambda number, tree: tree == {"n": values[number]})
    with lines.open() as add:
        for value in values[done:]:
            if value == stop:
                raise KeyError(value)
            add({"n": value})
    return done


def stopped(target: Path, settings: dict[str, Any], stop: int) -> None:
    with pytest.raises(KeyError):
        write(target, settings, range(5), stop)
    assert is_unfinished(target)


def test_it_goes_on(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.jsonl"
    stopped(target, {"seed": 0}, 3)
    with target.open("ab") as file:
        file.write(b'{"n": ')
    stopped(target, {"seed": 0}, 4)
    assert write(target, {"seed": 0}, range(5)) == 4
    assert [json.loads(line) for line in target.read_text().splitlines()] == [{"n": n} for n in range(5)]
    assert not is_unfinished(target) and [path.name for path in target.parent.iterdir()] == ["a.jsonl"]
    assert write(target, {"seed": 0}, range(5), overwrite=True) == 0  # a complete run is none to continue


def test_other_settings_are_another_run(tmp_path: Path) -> None:
    target = tmp_path / "a.jsonl"
    stopped(target, {"seed": 0, "map": "m"}, 3)
    with pytest.raises(UserError, match=r"unfinished run with other settings \(seed\)"):
        write(target, {"seed": 1, "map": "m"}, range(5))
    assert write(target, {"seed": 1, "map": "m"}, range(2), overwrite=True) == 0
    assert len(target.read_text().splitlines()) == 2


def test_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "a.jsonl"
    stopped(target, {}, 4)
    target.write_bytes(target.read_bytes().replace(b'{"n": 2}', b"{'\xff\x002}"))
    assert write(target, {}, range(5)) == 2 and len(target.read_bytes().splitlines()) == 5
    stopped(target.with_name("b.jsonl"), {}, 4)
    for content in (b"", b"{}", b"[" * 99, b'{"check": "0"}'):
        target.with_name("b.jsonl.run").write_bytes(content)
        lines = ResumableLines(target.with_name("b.jsonl"), {}, False)
        assert lines.keep(lambda number, tree: True) == 0
    assert "is damaged" in capsys.readouterr().err


def test_one_run_at_a_time(tmp_path: Path) -> None:
    target = tmp_path / "a.jsonl"
    first = ResumableLines(target, {}, False)
    with first.open() as add:
        add({"n": 0})
        second = ResumableLines(target, {}, False)
        assert second.keep(lambda number, tree: True) == 1
        with pytest.raises(UserError, match=r"another run writes .*a\.jsonl at this moment"), second.open():
            pass
        with pytest.raises(UserError, match="another run"), ResumableLines(target, {"seed": 1}, True).open():
            pass
        assert is_unfinished(target)
        add({"n": 1})
    assert target.read_text() == '{"n": 0}\n{"n": 1}\n' and not is_unfinished(target)
