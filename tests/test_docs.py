"""The documentation: its links, commands, modules and fields exist, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from test_house import FOLDERS

from dune_cli.cli import main
from support import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:`|^ {4,}|&& )dune ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)?)", re.MULTILINE)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_relative_links_resolve(page: Path) -> None:
    broken = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_exist(page: Path) -> None:
    context = click.Context(main)
    for words in COMMAND.findall(page.read_text(encoding="utf-8")):
        verb, _, second = words.partition(" ")
        if page.parent == DOCS / "adding" and (verb == "sharpness" or second == "half-size"):
            continue  # what these pages add
        assert verb in main.list_commands(context), f"{_name(page)} names 'dune {verb}'"
        command = main.get_command(context, verb)
        if second and isinstance(command, click.Group):
            assert second in command.list_commands(context), f"{_name(page)} names 'dune {words}'"


def _fields(schema: str) -> set[str]:
    """The last parts of the field names in the tables of a schema's section."""
    text = (DOCS / "file-formats.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## `{schema}`\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name.split(".")[-1].removesuffix("[]") for row in rows for name in re.findall(r"`([^`]+)`", row)}


@pytest.mark.parametrize(
    "schema, some", [("dune.pose/1", {"ref_from_query", "covariance"}), ("dune.depth/1", {"png_scale", "stride_px"})]
)
def test_fields_occur_in_the_code(schema: str, some: set[str]) -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "dune_cli").rglob("*.py")))
    fields = _fields(schema)
    assert some <= fields
    assert sorted(field for field in fields if f'"{field}"' not in code) == []


def test_every_page_is_in_an_index() -> None:
    linked = {DOCS / "README.md"}
    for index in (DOCS / "README.md", DOCS / "contributing.md"):
        for link in LINK.findall(index.read_text(encoding="utf-8")):
            linked.add((DOCS / link.partition("#")[0]).resolve())
    assert [_name(page) for page in DOCS.rglob("*.md") if page not in linked] == []


def test_the_table_of_imports_is_the_one_that_is_tested() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("\n## Which folder imports which\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    table = {names[0]: set(names[1:]) for names in (re.findall(r"`([^`]+)`", " ".join(row)) for row in rows)}
    assert table == FOLDERS


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_modules_exist(page: Path) -> None:
    """Of the files that a page names: `io/photos.py` or `dune_cli/io/photos.py`."""
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.py)`", page.read_text(encoding="utf-8"))
    assert [file for file in named if not ((ROOT / file).exists() or (ROOT / "dune_cli" / file).exists())] == []


def test_docstrings_point_to_pages_and_headings_that_exist() -> None:
    missing = set()
    folders = ("dune_cli", "examples", "tests", "weights")
    for path in [path for folder in folders for path in (ROOT / folder).rglob("*.py")]:
        text = re.sub(r"\s*\n\s*(?:# )?", " ", path.read_text(encoding="utf-8"))
        for page, heading in re.findall(r'(docs/[a-z0-9/-]+\.md)(?:, "([^"`]+)")?', text):
            headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
            missing |= {f"{_name(path)}: {page}, {heading}"} if heading and heading not in " ".join(headings) else set()
    assert missing == set()
