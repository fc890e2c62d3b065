"""`dune eval`: one benchmark a file, imported only when it runs."""

from __future__ import annotations

import importlib

import click

# benchmark -> (module that defines `command`, short help)
BENCHMARKS = {
    "pairs": ("dune_cli.commands.evaluations.pairs", "Relative pose of photo pairs with ground truth (AUC@5/10/20)."),
    "features": ("dune_cli.commands.evaluations.features", "k-NN, linear probe, cosine to teachers, patch matching."),
    "multiview": (
        "dune_cli.commands.evaluations.multiview",
        "Cameras of reconstructed photo sets, pycolmap + SIFT beside.",
    ),
    "depthmaps": ("dune_cli.commands.evaluations.depthmaps", "Dense depth of photo sets against measured depth."),
    "reloc": (
        "dune_cli.commands.evaluations.reloc",
        "Photos found again in a map they were left out of, others refused.",
    ),
    "mapfree": ("dune_cli.commands.evaluations.mapfree", "Official scores of a Map-free relocalization submission."),
}


class LazyBenchmarks(click.Group):
    """Lists benchmarks from the table and imports one only when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(BENCHMARKS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in BENCHMARKS:
            return None
        return importlib.import_module(BENCHMARKS[cmd_name][0]).command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Benchmarks"):
            formatter.write_dl([(name, text) for name, (_, text) in BENCHMARKS.items()])


@click.group("eval", cls=LazyBenchmarks)
def command() -> None:
    """Score models and matchers on data with ground truth.

    \b
    Example: dune eval pairs data/pairs --matcher sift,xfeat-lighterglue --size 480
    """
