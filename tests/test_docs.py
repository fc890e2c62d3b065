"""The documentation: its links lead somewhere, its commands exist, its fields are those that the code writes."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from dune_cli.cli import main

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:`|^ {4,}|&& )dune ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)?)", re.MULTILINE)
SPECS = {
    1: "encoder",
    2: "distillation",
    3: "mast3r",
    4: "multihmr",
    5: "relocalization",
    6: "weights",
    7: "dinov2-heads",
    8: "depth-anything-3",
    9: "loma",
}


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


def test_pages_of_the_published_models_are_indexed_under_their_numbers() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    for number, name in SPECS.items():
        page = DOCS / "models" / f"{name}.md"
        assert f"**spec {number}**" in page.read_text(encoding="utf-8")
        assert f"| spec {number} | [models/{name}.md](models/{name}.md) |" in index
    assert {page.stem for page in (DOCS / "models").glob("*.md")} == set(SPECS.values())
