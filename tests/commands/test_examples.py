"""Every example of `--help` and every command of README and docs can be parsed: options, arguments, values. Nothing
is run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from dune_cli.cli import main
from support import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ADDED = ("sharpness", "half-size")  # commands that the pages of docs/adding add


def every_help(command: click.Command = main, words: tuple[str, ...] = ()) -> dict[str, click.Command]:
    """All commands and groups by their words after `dune`."""
    found = {" ".join(words): command}
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            below = command.get_command(click.Context(command), name)
            assert below is not None
            found |= every_help(below, (*words, name))
    return found


HELPS = every_help()


def examples(command: click.Command) -> list[str]:
    """The examples of a help text. A line that does not begin with a program goes on with the one above."""
    text = (command.help or "").replace("Examples:", "Example:").partition("Example:")[2].split("\n\n")[0]
    lines: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith(("dune ", "torchrun ")) or not lines:
            lines.append(line)
        else:
            lines[-1] = f"{lines[-1].removesuffix(chr(92))} {line}"
    return lines


def inline_commands(page: Path) -> list[str]:
    """`dune …` with arguments within the lines of a page, also in parts."""
    found = re.findall(r"`(dune [^`]+)`", page.read_text(encoding="utf-8"))
    lines = [line.replace(r"\|", "|") for line in found if len(line.split()) > 2]
    return [line for line in lines if not re.search(r"\||\b(N|NAME)\b", line)]


def commands_of(page: Path) -> list[str]:
    """The commands of a page's indented code blocks, and those within its lines."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    blocks = re.findall(r"^    (?:\S.* && )?(dune [^`\n]*)$", text, re.MULTILINE)
    blocks = [part for block in blocks for part in block.split(" && ")]
    return [block for block in blocks if block.startswith("dune ")] + inline_commands(page)


def parse(line: str) -> None:
    """click.UsageError where the command line is none."""
    words = shlex.split(line.replace("\n", " "), comments=True)
    words = words[: words.index(">")] if ">" in words else words
    assert words[0] == "dune"
    context = click.Context(main, info_name="dune")
    command: click.Command = main
    rest = words[1:]
    while isinstance(command, click.Group):
        _, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command = found
        if rest == ["--help"] or (not rest and isinstance(command, click.Group)):
            return
    command.make_context(command.name, rest, parent=context)


@pytest.mark.parametrize("words", HELPS)
def test_the_examples_of_help(words: str) -> None:
    lines = examples(HELPS[words])
    assert any(line.partition("dune ")[2].startswith(words) for line in lines), "no example of the command itself"
    for line in lines:
        line = line.replace("torchrun --nproc-per-node 8 -m dune_cli.cli", "dune")
        try:
            parse(line)
        except click.UsageError as error:
            pytest.fail(f"{line}: {error.format_message()}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_commands_of_pages(page: Path) -> None:
    wrong = []
    for line in commands_of(page):
        if any(name in line for name in ADDED):
            continue
        try:
            try:
                parse(line)
            except click.UsageError:  # "…" may stand for options as well as for an argument
                parse(line.replace(" … ", " "))
        except (click.MissingParameter, click.BadOptionUsage) as error:
            if line not in inline_commands(page):  # prose names `dune reloc --map` without its value
                wrong.append(f"{line}: {error.format_message()}")
        except (click.UsageError, ValueError) as error:
            message = error.format_message() if isinstance(error, click.UsageError) else str(error)
            wrong.append(f"{line}: {message}")
    assert wrong == []


def test_the_commands_of_the_readme_are_found() -> None:
    found = commands_of(ROOT / "README.md")
    assert len(found) > 40
    assert any(line.startswith("dune reconstruct examples/photos/motorcycle_left.png") for line in found)


@pytest.mark.parametrize("line", ["dune depth", "dune depth a.jpg --colour", "dune depth a --size much", "dune eval x"])
def test_what_is_no_command_is_found(line: str) -> None:
    with pytest.raises(click.UsageError):
        parse(line)
