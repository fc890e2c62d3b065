"""`dune train`: heads on a frozen encoder, one a file of this folder."""

from __future__ import annotations

import click

from dune_cli.commands.options import FolderGroup


@click.group("train", cls=FolderGroup, package=__name__)
def command() -> None:
    """Train a head on a frozen encoder.

    \b
    Example: dune train matcher --encoder dune-mini --scenes scenes/ --photos photos/ -o matcher/
    """
