"""Options: declared once, the same in every command, filed under headings, old spellings kept."""

from __future__ import annotations

import ast
import inspect
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner

from dune_cli.cli import main
from dune_cli.commands import options
from dune_cli.commands.options import HEADINGS, Command, Option, OutputOptions, group, option, verb
from support import ROOT

MOST_PARAMETERS = 8
# What may differ between commands: option -> attributes. Each help text still begins with the same word.
DIFFER = {
    "--engine": {"help", "default", "type"},
    "--workers": {"help", "default", "default_text"},
    "--threads": {"help", "default_text"},  # torch's, or of all that a method uses
    "--model": {"help", "default", "default_text", "multiple"},  # which kinds of models a verb takes; several compared
    "--output": {"help", "default", "required", "metavar"},  # what is written; a run has a folder
    "--size": {"help", "default", "default_text", "type", "metavar"},  # what is reduced to it; a picture has two sides
    "--batch-size": {"help", "default"},  # photos, images or pairs
    "--encoder": {
        "help",
        "default",
        "required",
        "default_text",
    },  # a companion of --model, or the one that is trained on
    "--fill": {"help"},  # what is scored
    "--init": {"default_text"},
    "--fps": {"help", "default_text"},  # every frame, or key frames
    "--height": {"help", "default", "default_text", "type", "metavar"},  # one for all in a scene
    "--format": {"type", "default_text"},  # of what is written
    "--split": {"help", "type"},  # the test split has no public poses
    "--min-confidence": {"help", "type", "default_text"},  # of points or of poses
    "--preflight": {"help"},
    "--baseline": {"help", "metavar", "type"},  # reconstruct takes the names of two photos as well
    "--teachers": {"default", "required"},
    "--photos": {"help", "default", "multiple", "metavar"},
    "--data": {"help", "default", "metavar", "required"},  # labelled folders, or any photos
    "--cache": {"help", "default_text"},  # of teacher outputs, or of features
    "--teacher": {"help", "metavar", "type"},  # the teachers that a verb has a use for
    "--head": {"help", "default"},  # each task's own
    "--validate": {"help"},  # sets, or scenes
    "--fov-deg": {"help", "default_text"},  # photos whose depth is measured may have no camera
    "--log-every": {"default"},
    "--set": {"help"},
    "--limit": {"help"},  # of pairs, or of photos and poses
    "--matchers": {"help", "default_text"},
    "--pairs": {"help", "metavar"},  # reconstruct also takes a file
    "--lr": {"help", "default"},
    "--steps": {"default"},
    "--held-out": {"default"},
    "--checkpoint-minutes": {"default"},
    "--port": {"help", "default"},  # each page has its own; the one that takes photos does not go on to the next
    "--preview": {"help", "default_text"},  # of a photo, of a scene or of several tasks
    "--overwrite": {"help"},  # of downloads, or of an index
    "--all": {"help"},
    "--top": {"help", "default"},  # classes or photos
    "--seed": {"help"},  # of dune's own choices, or of a program that it starts
}
RENAMED = {
    "reloc": {"--top-k": "--neighbours", "--retrieval": "--retrieval-model"},
    "segment": {"--overlay": "--color-overlay"},
    "predict": {"--model": "--task-model"},
    "bench": {"--model": "--architecture"},
    "train matcher": {"--data": "--scenes", "--pairs": "--batch-size"},
    "eval pairs": {"--matcher": "--matchers", "--size": "--sizes"},
    "eval reloc": {"--matcher": "--matchers"},
    "eval multiview": {"--matcher": "--matchers", "--intrinsics": "--intrinsics-mode"},
    "eval depthmaps": {"--quality": "--qualities"},
    "eval features": {"--model": "--encoders", "--pairs": "--posed-pairs"},
}


def every_command(command: click.Command = main, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Command]]:
    """(words after `dune`, command) of all but groups."""
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            found = command.get_command(click.Context(command), name)
            assert found is not None
            yield from every_command(found, (*words, name))
    else:
        assert isinstance(command, Command)
        yield " ".join(words), command


COMMANDS = dict(every_command())


def options_of(command: click.Command) -> list[Option]:
    return [param for param in command.params if isinstance(param, Option)]


@pytest.mark.parametrize("words", COMMANDS)
def test_every_option_is_under_a_heading(words: str) -> None:
    result = CliRunner().invoke(main, [*words.split(), "--help"])
    assert result.exit_code == 0
    sections: dict[str, str] = {}
    for line in result.output.splitlines():
        if line.endswith(":") and line[:-1] in HEADINGS:
            sections[heading := line[:-1]] = ""
        elif sections:
            sections[heading] += line + "\n"
    assert list(sections) == [name for name in HEADINGS if name in sections] and "--debug" in sections["Advanced"]
    for param in options_of(COMMANDS[words]):
        assert param.opts[0] in sections[param.heading], param.name
        assert not set(param.aliases) & {line.split()[0] for line in result.output.splitlines() if line.strip()}


def test_reconstructs_headings() -> None:
    output = CliRunner().invoke(main, ["reconstruct", "--help"]).output
    order = [output.index(f"{name}:\n") for name in ("Input", "Cameras", "Matching", "Dense", "Output", "Advanced")]
    assert order == sorted(order)


def described(param: Option) -> dict[str, Any]:
    kind = param.type
    return {
        "metavar": param.metavar,
        "help": param.help,
        "default": param.default,
        "default_text": param.default_text,
        "required": param.required,
        "multiple": param.multiple,
        "is_flag": param.is_flag,
        "type": (type(kind).__name__, kind.to_info_dict()),
    }


def test_an_option_is_the_same_in_every_command() -> None:
    by_name = defaultdict(dict)
    for words, command in COMMANDS.items():
        for param in options_of(command):
            by_name[max(param.opts, key=len)][words] = described(param)
    unused = {name: set(differ) for name, differ in DIFFER.items()}
    wrong = []
    for name, found in by_name.items():
        first, *others = found.values()
        for other in others:
            differ = {key for key in first if first[key] != other[key]}
            unused.get(name, set()).difference_update(differ)
            wrong += [f"{name}: {key} differs" for key in differ - DIFFER.get(name, set())]
            begin = {one["help"].replace(":", "").split()[0] for one in (first, other)}
            if len(begin) > 1 and name not in ("--size", "--all", "--validate"):
                wrong.append(f"{name}: {first['help']} | {other['help']}")
    assert sorted(set(wrong)) == [], "\n".join(sorted(set(wrong)))
    assert {name: differ for name, differ in unused.items() if differ} == {}


def test_help_texts_are_sentences() -> None:
    for words, command in COMMANDS.items():
        for param in options_of(command):
            assert param.help and param.help[0].isupper() and param.help.endswith("."), f"{words} {param.opts}"


def test_no_function_of_commands_takes_many_parameters() -> None:
    for path in sorted((ROOT / "dune_cli" / "commands").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and path.name != "options.py":
                count = len([one for one in node.args.args + node.args.kwonlyargs if one.arg != "self"])
                assert count <= MOST_PARAMETERS, f"{path.name}: {node.name} has {count}"


@pytest.mark.parametrize("words", RENAMED)
def test_old_spellings_still_work(words: str) -> None:
    command = COMMANDS[words]
    aliases = {alias: param for param in options_of(command) for alias in param.aliases}
    for old, new in RENAMED[words].items():
        param = aliases[old]
        assert param.opts == [new]
        value = {"--overlay": [], "--size": ["480"], "--pairs": ["3"], "--top-k": ["3"], "--intrinsics": ["known"]}
        rest = value.get(old, ["x"])
        by_old, by_new = (
            command.make_context("dune", [name, *rest], resilient_parsing=True).params[param.name]
            for name in (old, new)
        )
        assert by_old == by_new and by_old not in (None, False, ())


def test_all_old_spellings_are_tested() -> None:
    found = {
        words: {alias for param in options_of(command) for alias in param.aliases}
        for words, command in COMMANDS.items()
    }
    shared = {"--top-k", "--retrieval"}  # which reconstruct has with reloc
    assert {words: names - shared for words, names in found.items() if names - shared} == {
        words: set(names) - shared for words, names in RENAMED.items() if set(names) - shared
    }


@group("Input")
class Given:
    number: int = option("--number N", "Number.", int, 1)
    names: tuple[str, ...] = option("--names NAME,...", "Names.", options.NameList(), ())
    files: tuple[str, ...] = option("--file FILE", "Files.", multiple=True, aliases=["--old"])
    flag: bool = option("--flag", "Flag.")


def test_a_command_gets_one_instance_of_a_group() -> None:
    got = []

    @verb()
    def command(
        *, given: Given, word: str = option("-w, --word WORD", "Word."), output: OutputOptions = options.adapt()
    ) -> None:
        got.append((given, word, output.as_json))

    assert CliRunner().invoke(command, []).exit_code == 0
    words = ["--number", "2", "--names", "a, b,a,", "--file", "x", "--old", "y", "--flag", "-w", "z", "--json"]
    assert CliRunner().invoke(command, words).exit_code == 0
    assert got == [
        (Given(), None, False),
        (Given(number=2, names=("a", "b"), files=("x", "y"), flag=True), "z", True),
    ]
    with pytest.raises(AttributeError):
        got[0][0].number = 3
    assert list(inspect.signature(Given).parameters) == ["number", "names", "files", "flag"]


def test_two_options_of_one_name_are_an_error() -> None:
    with pytest.raises(TypeError, match="two options of one name"):

        @verb()
        def command(*, given: Given, number: int = option("--other N", "Other.", int, 1)) -> None: ...


def test_a_verb_declares_an_option_of_a_group_otherwise() -> None:
    @verb()
    def command(*, output: OutputOptions = options.adapt(output=options.output_to("a .xyz file."))) -> None: ...

    found = {param.name: param for param in options_of(command)}
    assert found["output"].help == "Output: a .xyz file." and found["output"].heading == "Output"
