"""What names may do to a terminal: nothing. Control characters are shown as escapes; a pipe gets a name's own bytes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from dune_cli import console, provenance
from dune_cli.cli import main
from dune_cli.commands import _profile

NAMES = {
    "\x1b[2Jcleared.jpg": r"\x1b[2Jcleared.jpg",
    "two\nlines.jpg": r"two\x0alines.jpg",
    "back\rto\bthe\tstart\x7f.jpg": r"back\x0dto\x08the\x09start\x7f.jpg",
    "csi\x9b31m.jpg": r"csi\x9b31m.jpg",
    "turned\u202egpj.exe": r"turned\u202egpj.exe",
    "bytes\udcff\udc80.jpg": r"bytes\xff\x80.jpg",
    "über  straße \\ 写真.jpg": "über  straße \\ 写真.jpg",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_on_one_line_without_controls(name: str) -> None:
    assert console.shown(name) == NAMES[name]
    assert console.shown(Path("/x") / name) == f"/x/{NAMES[name]}"


SPEAK = """
import sys
from dune_cli import console
from dune_cli.io.json_files import dumps
names = [bytes.fromhex(word).decode("utf-8", "surrogateescape") for word in sys.argv[1:]]
console.result(*names)
console.document(dumps({"photos": names}))
for name in names:
    console.note(f"photo {name}")
    list(console.progress([1], name))
"""


def speak(**how: object) -> subprocess.Popen[bytes]:
    words = [os.fsencode(name).hex() for name in NAMES]
    return subprocess.Popen([sys.executable, "-c", SPEAK, *words], **how)


def test_a_pipe_gets_the_bytes_of_a_name() -> None:
    out, err = speak(stdout=subprocess.PIPE, stderr=subprocess.PIPE).communicate(timeout=120)
    raw = b"".join(os.fsencode(name) + b"\n" for name in NAMES)
    assert out.startswith(raw)
    assert json.loads(out[len(raw) :])["photos"][0] == "\x1b[2Jcleared.jpg"
    assert err.decode() == "".join(f"photo {shown}\n" for shown in NAMES.values())


def test_a_terminal_gets_no_controls() -> None:
    ours, theirs = pty.openpty()
    process = speak(stdout=theirs, stderr=subprocess.DEVNULL)
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 65536):
            seen += piece
    except OSError:  # Linux says EIO when the other side has gone
        pass
    os.close(ours)
    assert process.wait(120) == 0
    lines = seen.decode().split("\r\n")
    assert lines[: len(NAMES)] == list(NAMES.values())
    assert all(character >= " " for line in lines for character in line)
    shown = json.loads("\n".join(lines[len(NAMES) :]))["photos"]
    assert shown[:5] == list(NAMES)[:5]  # escaped once more, in JSON's way, which means the same


def test_errors_of_the_command_line_show_no_controls(tmp_path: Path) -> None:
    for words in (["\x1b[2J"], ["--\x1b[2J"], ["encode", "--\x1b[2J"], ["encode", "x", "--size", "\x1b[2J"]):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 2 and "\x1b" not in result.stderr and r"\x1b[2J" in result.stderr, words
    for name, shown in NAMES.items():
        result = CliRunner().invoke(main, ["weights", "info", str(tmp_path / name)])
        assert result.exit_code == 2 and result.stderr.count("\n") == 1 and shown in result.stderr
        (tmp_path / name).write_bytes(b"no weights")
        result = CliRunner().invoke(main, ["weights", "info", str(tmp_path / name)])
        assert result.exit_code == 2 and result.stderr.count("\n") == 1 and shown in result.stderr


@pytest.mark.parametrize("words", [[], ["train"], ["eval"], ["config"]])
def test_a_group_alone_prints_its_help(words: list[str]) -> None:
    shown = CliRunner().invoke(main, words)
    assert shown.exit_code == 2 and "\n  -h, --help" in shown.stderr and r"\x0a" not in shown.stderr


def test_a_wrong_command_is_answered_with_the_nearest() -> None:
    for words, near in (("reconstuct", "'reconstruct'"), ("train dept", "'depth'"), ("zzz", "")):
        shown = CliRunner().invoke(main, words.split())
        assert shown.exit_code == 2 and f"No such command {words.split()[-1]!r}." in shown.stderr
        assert shown.stderr.count("Did you mean") == bool(near) and near in shown.stderr


def test_a_photo_of_any_name_is_encoded(example_photos: Path, tmp_path: Path) -> None:
    photo = next(path for path in sorted(example_photos.rglob("*.jpg")))
    paths = [tmp_path / name for name in NAMES if name.endswith(".jpg")]
    for path in paths:
        path.write_bytes(photo.read_bytes())
    words = ["encode", *map(str, paths), "--size", "56", "-o", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.stderr
    assert len(list((tmp_path / "out").glob("*.npz"))) == len(paths)
    assert "\x1b" not in result.stderr


def test_columns_line_up() -> None:
    rows = [("stage", "seconds"), ("load", "1.5"), ("write", "12.25")]
    assert console.aligned(rows, right=(1,)) == ["stage  seconds", "load       1.5", "write    12.25"]


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ("  ok       torch", "  not here ray", "packages", "a missing page")
    console.states(*lines)
    assert capsys.readouterr().out.splitlines() == list(lines)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    console.states(*lines, "  ok       \x1b[2J")
    coloured = ["  \x1b[32mok\x1b[0m       torch", "  \x1b[33mnot here\x1b[0m ray", *lines[2:]]
    assert capsys.readouterr().out.splitlines() == [*coloured, "  \x1b[32mok\x1b[0m       " + r"\x1b[2J"]
    monkeypatch.setenv("NO_COLOR", "1")
    console.states(*lines)
    assert capsys.readouterr().out.splitlines() == list(lines)


def test_a_profile_of_stages() -> None:
    runs = [provenance.Run(seconds={"load": 1.0, "write": 0.5}, processor_seconds={"load": 2.0, "write": 0.25})]
    assert _profile.table(runs, 3.0, 4.0, 0.5) == [
        "stage              seconds  processor s  share",
        "load                  1.00         2.00    33%",
        "write                 0.50         0.25    17%",
        "outside of stages     1.50         1.25    50%",
        "total                 3.00         3.50   100%",
    ]


def test_every_command_has_profile() -> None:
    result = CliRunner().invoke(main, ["config", "path", "--profile"])
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stderr.splitlines()] == ["stage", "outside", "total"]
    assert CliRunner().invoke(main, ["config", "path"]).stderr == ""
    assert CliRunner().invoke(main, ["config", "path", "--profile", "--quiet"]).stderr == ""
