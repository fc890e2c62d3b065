"""`dune eval report`: the tables of a page printed again, and the cells that differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from dune_cli.cli import main
from dune_cli.errors import UserError
from dune_cli.evaluation import report_pages
from dune_cli.evaluation.report_pages import PageTable, Spread
from support import ROOT

SCRIPT = """
print("made by a script\\n")
print("| place | rotation | seconds | extra |\\n|---|---|---|---|")
print("| lund | 0.110° | 7 | x |\\n| hololens | 0.30° | 9 | y |")
"""
PAGE = """# A page

<!-- dune eval report
command: python table.py
spread: 0.02
not compared: seconds
minutes: 0.1
-->

| place | rotation | seconds |
|---|---|---|
| `lund` | 0.10° | 3.0 |
| hololens | {rotation}° | 4.0 |

Prose.

<!-- dune eval report
command: dune eval multiview DATA/none
needs: DATA/none
-->
| set | placed |
|---|---|
| lund | 8 of 8 |

<!-- dune eval report
by hand: looked at
-->

| photos | fit |
|---|---|
| 60 | well |
"""


def page(folder: Path, rotation: str = "0.31") -> Path:
    (folder / "pages").mkdir(exist_ok=True)
    (folder / "table.py").write_text(SCRIPT)
    file = folder / "pages" / "places.md"
    file.write_text(PAGE.format(rotation=rotation))
    return file


def test_a_page_is_checked(dune: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page(tmp_path)
    result = dune("eval", "report", "--check", "pages", "-o", "report.json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "pages/places.md:10: the same (2 cells)",
        "pages/places.md:21: left out (needs DATA/none; name the folder by --data-root)",
        "pages/places.md:29: left out (by hand: looked at)",
    ]
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["schema"] == "dune.eval-report/1" and [bool(t["skipped"]) for t in document["tables"]] == [0, 1, 1]
    page(tmp_path, "0.33")
    result = dune("eval", "report", "--check", "pages", "--pages", "places")
    assert result.returncode == 1 and "1 cell differs by more than the spread: pages/places.md:10" in result.stderr
    assert "  hololens, rotation: 0.33° on the page, 0.30° now" in result.stdout


def test_a_page_is_printed_again(dune: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page(tmp_path, "0.5")
    result = dune("eval", "report", "pages/places.md", "--minutes", "0.2", "--data-root", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (
        "| place | rotation | seconds |\n|---|---|---|\n| lund | 0.110° | 7 |\n| hololens | 0.30° | 9 |"
        in result.stdout
    )
    assert "left out (needs DATA/none, which is not here)" in result.stdout
    result = dune("eval", "report", "pages", "--minutes", "0.01")
    assert "places.md:10: left out (takes 0.1 minutes)" in result.stdout
    for words, message in (
        (["pages", "--pages", "rooms"], "--pages rooms is none of the pages: places"),
        (["nowhere"], "nowhere does not exist"),
    ):
        assert message in dune("eval", "report", *words).stderr
    (tmp_path / "table.py").write_text("print('| place |\\n|---|')")
    assert "prints no table with the columns place, rotation" in dune("eval", "report", "pages").stderr
    (tmp_path / "table.py").write_text("raise SystemExit(3)")
    result = dune("eval", "report", "pages")
    assert result.returncode == 2 and "python table.py ended with exit code 3" in result.stderr


@pytest.mark.parametrize(
    "text, message",
    [
        ("<!-- dune eval report\ncommand: dune doctor", "no end"),
        ("<!-- dune eval report\ncommand: dune doctor\n-->\n", "the last marker has no table"),
        ("<!-- dune eval report\ncommand: dune doctor\n-->\nProse.\n", "a table is expected below the marker"),
        ("<!-- dune eval report\ncommand: rm -r x\n-->\n", "'rm' is no command of a marker"),
        ("<!-- dune eval report\ncommand: dune doctor\nspreads: 3\n-->\n", "'spreads: 3' is no line of a marker"),
        ("<!-- dune eval report\ncommand: dune doctor\nspread: wide\n-->\n", "a spread is such as 0.02 or 10 %"),
        ("<!-- dune eval report\nneeds: x\n-->\n", "either 'command' or 'by hand'"),
    ],
)
def test_markers_that_cannot_be_understood(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(UserError, match=message):
        report_pages.read_page(tmp_path / "page.md")


def differences(row: str, now: str, spread: Spread) -> int:
    marker = report_pages.Marker(("dune",), spread=spread)
    table = PageTable(Path("p.md"), 1, ("set", "score"), (("lund", row),), marker)
    return len(report_pages.compare(table, [("lund", now)]))


@pytest.mark.parametrize(
    "one, other, spread, same",
    [
        (".57 .67 .73", "0.565 0.668 0.735", "0.01", True),
        (".57 .67 .73", ".57 .67", "0.01", False),
        ("0.111 ± 0.001", "0.112 ± 0.003", "0.001", False),
        ("1,024 px", "1000 px", "5 %", True),
        ("8 of 8", "7 of 8", "0", False),
        ("−0.5", "-0.5", "0", True),
        ("0.1–0.3°", "0.1–0.4°", "0.1", True),
    ],
)
def test_cells(one: str, other: str, spread: str, same: bool) -> None:
    assert (differences(one, other, Spread.parse(spread)) == 0) == same


def test_rows_belong_together_by_their_labels() -> None:
    rows = (("lund", "sift", "1"), ("", "auto", "2"), ("fern", "sift", "3"))
    table = PageTable(Path("p.md"), 1, ("set", "method", "score"), rows, report_pages.Marker(("dune",)))
    now = [("fern", "sift", "3"), ("lund", "auto", "2"), ("lund", "sift", "1"), ("lund", "new", "7")]
    assert report_pages.compare(table, now) == [] and report_pages.count_cells(table) == 3
    assert [str(one) for one in report_pages.compare(table, now[1:])] == [
        "fern sift: fern | sift | 3 on the page, no such row now"
    ]


def test_every_table_of_the_benchmarks_has_a_marker() -> None:
    for file in sorted((ROOT / "docs" / "benchmarks").glob("*.md")):
        for table in report_pages.read_page(file):
            assert table.marker is not None, table.place


@pytest.mark.parametrize("content, said", [(b"\x89PNG", "is not UTF-8 text"), (b"| a |\n", "holds no table with the")])
def test_what_is_no_page_of_benchmarks(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_bytes(content)
    done = CliRunner().invoke(main, ["eval", "report", str(tmp_path / "page.md")])
    assert done.exit_code == 2 and said in done.stderr
