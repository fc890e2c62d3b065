"""`dune eval mapfree`: the official scores of a submission."""

from __future__ import annotations

from pathlib import Path

from dune_cli.commands import options
from dune_cli.commands.eval._common import BenchmarkOutput
from dune_cli.provenance import Run


@options.verb("mapfree")
def command(
    *,
    root: str = options.argument("ROOT", "Folder of the data set."),
    split: str = options.option(
        "--split [train|val]",
        "Folder below ROOT. The poses of the test split are not public.",
        default="val",
        heading="Input",
    ),
    submission: str = options.option(
        "--submission FILE",
        "ZIP with the files pose_<scene>.txt, as dune mapfree writes it.",
        required=True,
        heading="Input",
    ),
    output: BenchmarkOutput,
) -> None:
    """Score a Map-free submission.

    The scores are exactly those of the official single-frame script, quirks included. Errors are in metres, degrees and
    pixels. Precision and AUC are for 0.25 m and 5 degrees, and for a virtual correspondence reprojection error (VCRE)
    of 90 px. Malformed lines are skipped with a note. Missing frames count as failures.

    \b
    Example: dune eval mapfree data/mapfree --submission submission.zip
    """
    from dune_cli.evaluation import mapfree
    from dune_cli.provenance import sha256_of

    target = output.file(".json")
    path, run = Path(submission).expanduser(), Run()
    with run.stage("score"):
        scores = mapfree.score(Path(root).expanduser() / split, path)
    result = {
        "schema": "dune.eval-mapfree/1",
        "root": root,
        "split": split,
        "scores": scores,
        "provenance": run.provenance([], [(path, sha256_of(path))], units="metres, degrees, pixels"),
    }
    width = max(map(len, scores))
    output.finish(result, target, "\n".join(f"{name.ljust(width)}  {value:.6f}" for name, value in scores.items()))
