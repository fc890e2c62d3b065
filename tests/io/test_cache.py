"""Lines with checksums: whole ones come back, damaged ones are counted and never used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dune_cli.errors import UserError
from dune_cli.io.cache import (
    add_checksum,
    append_line,
    check_cached,
    read_cached,
    read_lines,
    text_array,
    text_of,
    verified,
    write_cached,
)


def test_lines_come_back_without_those_that_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    entries = [{"step": k, "loss": 1 / (k + 1), "text": "ä"} for k in range(5)]
    for entry in entries:
        append_line(path, entry, "run 1")
    assert read_lines(path, "a log", "run 1") == (entries, 0)
    assert read_lines(path, "a log", "run 2") == ([], 5)
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b"0.5", b"0.6")
    lines[3] = b"\xff{" + b"[" * 5000
    path.write_bytes(b"\n".join(lines))
    assert read_lines(path, "a log", "run 1") == ([entries[0], entries[2], entries[4]], 2)
    assert read_lines(tmp_path / "none", "a log") == ([], 0)


def test_a_line_that_a_kill_cut_off_is_passed_over_and_the_next_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_line(path, {"step": 1})
    append_line(path, {"step": 2})
    path.write_bytes(path.read_bytes()[:-20])
    assert read_lines(path, "a log") == ([{"step": 1}], 0)
    append_line(path, {"step": 3})
    assert read_lines(path, "a log") == ([{"step": 1}, {"step": 3}], 1)


def test_logs_are_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder"):
        with pytest.raises(UserError, match=name):
            append_line(tmp_path / name, {})
        with pytest.raises(UserError, match=name):
            read_lines(tmp_path / name, "a log")


def test_a_checksum_covers_the_fingerprint() -> None:
    entry = add_checksum({"a": [1, 2.5, None], "b": float("nan")}, "x")
    assert verified(json.loads(json.dumps(entry)), "x") == {"a": [1, 2.5, None], "b": None}
    for other in (entry | {"a": 1}, entry | {"c": 1}, {}, None, [entry], entry | {"check": 5}):
        assert verified(other, "x") is None
    assert verified(entry, "y") is None


def test_a_cache_file_is_checked_without_reading_it_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.safetensors"
    write_cached(path, "dune.test/1", "x", {"text": text_array("ä text"), "more": text_array("")})
    found = read_cached(path, "dune.test/1", "x")
    assert found is not None and text_of(found["text"]) == "ä text" and text_of(found["more"]) == ""
    assert check_cached(path, "dune.test/1", "x") and not check_cached(path, "dune.test/1", "y")
    assert not check_cached(tmp_path / "none", "dune.test/1", "x") and not capsys.readouterr().err
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        assert check_cached(path, "dune.test/1", "x") == (read_cached(path, "dune.test/1", "x") is not None)
        assert not check_cached(path, "dune.test/1", "x")
