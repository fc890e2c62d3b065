"""`dune eval`: one benchmark a file of this folder, imported only when it runs."""

from __future__ import annotations

import click

from dune_cli.commands.options import FolderGroup

NEEDS = ("numpy", "torch", "cv2", "PIL", "tqdm")


@click.group("eval", cls=FolderGroup, package=__name__, heading="Benchmarks")
def command() -> None:
    """Score models and matchers on data with ground truth.

    \b
    Example: dune eval pairs data/pairs --matchers sift,xfeat-lighterglue --sizes 480
    """
