"""`--push` of the commands that write weights: their files and a model card, on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.options import JsonOptions, OutputOptions, Printer, option


def push_option() -> Any:
    """--push."""
    return option(
        "--push hf://OWNER/NAME",
        "Repository of the Hugging Face hub for the weights and a model card. A new one is private. Needs a login.",
        heading="Output",
    )


def check(target: str | None) -> None:
    """Before hours of work. Errors as hub.check_login's."""
    if target is not None:
        from dune_cli.checkpoints import hub

        hub.check_login(target)


def push(target: str | None, files: Sequence[Path], document: Mapping[str, Any]) -> None:
    """Publishes `files`, the main one first, with the card of a report, and says where they are. Errors as
    hub.publish's."""
    if target is None:
        return
    from dune_cli.checkpoints import hub
    from dune_cli.checkpoints.model_card import model_card

    card = model_card(hub.parse_repository(target), files, document)
    place = hub.publish(target, {path.name: path for path in files}, card)
    console.note(f"published: {place}")


@options.group("Output")
class RunOutput(Printer):
    """The run folder of a training."""

    output: str = option(
        "-o, --output DIR", "Output folder of the run. The same command resumes the run in it.", required=True
    )
    as_json: bool = options.changed(JsonOptions, "as_json")
    push: str | None = push_option()

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output).expanduser()


@options.group("Output")
class PublishedOutput(OutputOptions):
    """The output file, and --push."""

    push: str | None = push_option()
