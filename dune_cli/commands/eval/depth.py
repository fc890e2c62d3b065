"""`dune eval depth`: depth of single photos against measured depth, beside what needs no network."""

from __future__ import annotations

from typing import Any

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.eval._common import BenchmarkOutput
from dune_cli.commands.options import ComputeOptions, option
from dune_cli.errors import UserError
from dune_cli.provenance import Run


@options.group("Input")
class DepthEvalOptions:
    """--model, --encoder, --set, --crop, --flip."""

    models: tuple[str, ...] = option(
        "--model NAME|FILE",
        "Model: depth model to evaluate. Repeatable.",
        multiple=True,
        default_text=options.BEST_MODEL,
    )
    encoder: str | None = option("--encoder NAME|FILE", "Encoder of the models' heads.", default_text="by their names")
    sets: tuple[str, ...] = option("--set NAME,...", "Sets to evaluate.", options.NameList(), default_text="all")
    crop: str = option(
        "--crop [none|nyu|kitti]",
        "Pixels that count: none (0.05 to 60 m), nyu (Eigen's crop, to 10 m), kitti (Garg's crop, to 80 m).",
        default="none",
    )
    flip: bool = option("--flip", "Average with the horizontally flipped prediction. Takes twice the time.")
    size: int | None = options.size_px()


@options.verb("depth")
def command(
    *,
    roots: tuple[str, ...] = options.argument(
        "DATA...", "Folders of photos with depth, in the layouts of dune train depth.", nargs=-1, required=True
    ),
    chosen: DepthEvalOptions,
    compute: ComputeOptions,
    output: BenchmarkOutput,
) -> None:
    """Evaluate the depth of single photos against measured depth.

    Depth is compared as predicted (raw), after one scale (median), and after scale and shift (affine). The table gives
    AbsRel and the share of ratios below 1.25 by set, then means over the indoor and the outdoor sets, and the recall of
    depth edges within 2 px. Sets of disparity have the correlation with inverse depth instead. RMSE and SI-log are in
    the JSON. The controls are a constant, a vertical gradient, the mean map of a head's training data, and FastDepth
    where its weights are on this machine.

    \b
    Example: dune eval depth data/depth_val data/depth
             dune eval depth nyu/ --crop nyu --model dinov2-vits14-nyu-dpt --model depth/head.safetensors
    """
    target = output.file(".json")
    for root in roots:
        checks.folder(root)
    names = chosen.models or (options.ModelOptions().choose("depth"),)
    checks.weights(*names, chosen.encoder)

    from dune_cli.evaluation import depth as benchmark
    from dune_cli.training.heads.datasets import read_datasets

    examples = read_datasets("depth", roots).examples
    known = list(dict.fromkeys(example.set_name for example in examples))
    unknown = [name for name in chosen.sets if name not in known]
    if unknown:
        raise UserError(f"--set {unknown[0]} is no set of the data; it has: {', '.join(known)}")
    examples = tuple(example for example in examples if not chosen.sets or example.set_name in chosen.sets)
    run = Run()
    with run.stage("load"):
        methods, sources = benchmark.load_methods(
            names, chosen.encoder, compute.device, compute.dtype, chosen.size, chosen.flip
        )
    scores: list[benchmark.PhotoScore] = []
    with run.stage("evaluate"):
        scored = benchmark.score_examples(examples, methods, benchmark.CROPS[chosen.crop])
        for one in console.progress(scored, "depth", len(examples), "photo"):
            scores += one
    if not scores:
        raise UserError("no photo of the data has enough measured depth")
    rows = benchmark.set_scores(scores)
    groups = benchmark.group_scores(scores, rows)
    result: dict[str, Any] = {
        "schema": "dune.eval-depth/1",
        "data": list(roots),
        "crop": chosen.crop,
        "methods": list(methods),
        "rows": [_row(row) for row in rows],
        "groups": [_row(row) for row in groups],
        "provenance": run.provenance(sources, [], dtype=compute.dtype, flip=chosen.flip, units="RMSE in metres"),
    }
    output.finish(result, target, "\n\n".join(benchmark.tables(rows, groups, list(methods))))


def _row(row: Any) -> dict[str, Any]:
    numbers = {name: round(value, 5) for name, value in row.numbers.items() if value == value}
    return {"set": row.name, "method": row.method, "photos": row.photos, **numbers}
