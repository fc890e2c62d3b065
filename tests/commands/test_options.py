"""The long verbs' --help files every option under a heading."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from dune_cli.cli import main
from dune_cli.commands.options import HEADINGS, GroupedCommand

LONG = ["reconstruct", "reloc", "distill", "human", "depth", "predict", "mapfree", "train matcher"]
LONG += [f"eval {name}" for name in ("pairs", "multiview", "depthmaps", "reloc", "features", "mapfree")]


@pytest.mark.parametrize("verb", LONG)
def test_every_option_is_under_a_heading(verb: str) -> None:
    result = CliRunner().invoke(main, [*verb.split(), "--help"])
    assert result.exit_code == 0
    command: click.Command = main
    for word in verb.split():
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    assert isinstance(command, GroupedCommand)
    sections: dict[str, str] = {}
    for line in result.output.splitlines():
        if line.endswith(":") and line[:-1] in HEADINGS:
            sections[heading := line[:-1]] = ""
        elif sections:
            sections[heading] += line + "\n"
    assert list(sections) == [name for name in HEADINGS if name in sections] and "Output" in sections
    for param in command.params:
        if isinstance(param, click.Option) and not param.hidden:
            assert param.opts[0] in sections[command.heading_of(param)], param.name
    assert "--seed" not in sections["Output"] and "--debug" in sections["Advanced"]


def test_reconstructs_headings() -> None:
    output = CliRunner().invoke(main, ["reconstruct", "--help"]).output
    order = [output.index(f"{name}:\n") for name in ("Input", "Cameras", "Matching", "Dense", "Output", "Advanced")]
    assert order == sorted(order)
