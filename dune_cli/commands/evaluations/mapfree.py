"""`dune eval mapfree`: the official scores of a submission."""

from __future__ import annotations

import click

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.options import GroupedCommand


@click.command("mapfree", cls=GroupedCommand)
@click.argument("root")
@click.option(
    "--split",
    type=click.Choice(["train", "val"]),
    default="val",
    show_default=True,
    help="Folder below ROOT; the test split's poses are not public.",
)
@click.option("--submission", required=True, metavar="ZIP", help="pose_<scene>.txt files, as dune mapfree writes them.")
@options.output(False, "Also write the JSON to this .json file.")
@options.as_json
@options.common
def command(root: str, split: str, submission: str, output: str | None, overwrite: bool, as_json: bool) -> None:
    """Official single-frame scores of a submission against the poses under ROOT, quirks of the script included.

    Errors in metres, degrees and pixels; precision and AUC for 0.25 m and 5 degrees, and for a virtual correspondence
    reprojection error (VCRE) of 90 px. Malformed lines are skipped with a note; missing frames count as failures.

    \b
    Example: dune eval mapfree data/mapfree --submission submission.zip
    """
    from pathlib import Path

    from dune_cli.evaluation import mapfree
    from dune_cli.io import outputs
    from dune_cli.io.json_files import dumps, write_json
    from dune_cli.provenance import Run, sha256_of

    target = outputs.check_output(output, (".json",), overwrite) if output is not None else None
    path, run = Path(submission).expanduser(), Run()
    with run.stage("score"):
        scores = mapfree.score(Path(root).expanduser() / split, path)
    tree = {
        "schema": "dune.eval-mapfree/1",
        "root": root,
        "split": split,
        "scores": scores,
        "provenance": run.provenance([], [(path, sha256_of(path))], units="metres, degrees, pixels"),
    }
    if target is not None:
        write_json(target, tree)
    if as_json:
        console.document(dumps(tree))
        return
    width = max(map(len, scores))
    console.document("\n".join(f"{name.ljust(width)}  {value:.6f}" for name, value in scores.items()))
