"""`dune eval depthmaps`: the dense part of reconstruct against measured depth, a row a set and method."""

from __future__ import annotations

import click

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.evaluations import shared
from dune_cli.commands.options import GroupedCommand
from dune_cli.errors import UserError

QUALITIES = ("low", "medium", "high")


@click.command("depthmaps", cls=GroupedCommand)
@click.argument("root")
@click.option(
    "--matcher",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Finds the sparse points; auto: the best one present; mast3r needs --model.",
)
@shared.model
@shared.encoder
@shared.sets()
@click.option(
    "--quality",
    "qualities",
    default="medium",
    show_default=True,
    metavar="NAME,…",
    callback=options.names,
    help="low, medium, high: each a row.",
)
@options.output(required=False, text="Also write the JSON, with every photo's score, to this .json file.")
@options.as_json
@options.seed
@options.compute
@options.common
def command(
    root: str,
    matcher: str,
    model: str | None,
    encoder: str | None,
    sets: list[str],
    qualities: list[str],
    output: str | None,
    overwrite: bool,
    as_json: bool,
    seed: int,
    device: str,
    dtype: str,
) -> None:
    """Depth of the photo sets under ROOT whose cameras.json files name measured depth, at the true cameras.

    Completeness is the share of the measured pixels that got a depth; AbsRel, the share with a ratio below 1.25 and
    the share within 5 % count those; the last column is right ones as a share of all measured pixels. Means over the
    photos. Controls: the true median depth everywhere, and the depth of the nearest sparse point.

    \b
    Example: dune eval depthmaps data/multiview --set hololens --quality low,medium
    """
    from dataclasses import asdict

    from dune_cli import optional
    from dune_cli.evaluation.localization import read_posed_sets
    from dune_cli.io import outputs
    from dune_cli.provenance import Run, sha256_of

    strange = [name for name in qualities if name not in QUALITIES]
    if strange or not qualities:
        raise UserError(f"unknown quality {', '.join(strange) or '(none)'}; allowed: {', '.join(QUALITIES)}")
    target = outputs.check_output(output, [".json"], overwrite) if output else None
    places = read_posed_sets(root, sets)
    checks.matchers([matcher], model, encoder)

    from dune_cli.evaluation import depthmaps as benchmark

    optional.import_pycolmap("dune eval depthmaps")
    run = Run(seed=seed)
    with run.stage("load"):
        asked = [matcher] if matcher != "auto" else []
        ((name, loaded),) = shared.load_columns(asked, model, encoder, device, dtype).items()
    rows: list[tuple[str, str, float, list[benchmark.ViewScore]]] = []
    with run.stage("evaluate"):
        for place in console.progress(places, "sets", len(places), "set"):
            found = [(place.name, *row) for row in benchmark.score_set(place, loaded, qualities, device, seed)]
            if not found:
                console.note(f"{place.name} has no measured depth")
            rows += found
    if not rows:
        raise UserError(f"no set under {root} has measured depth; its frames must name a depth PNG")
    result = {
        "schema": "dune.eval-depthmaps/1",
        "root": root,
        "matcher": name,
        "rows": [
            {"set": place, "method": method, "seconds": round(seconds, 3)}
            | shared.rounded(asdict(benchmark.mean_errors([score.errors for score in scores])))
            for place, method, seconds, scores in rows
        ],
        "photos": [
            {"set": score.set_name, "image": score.image, "method": score.method} | shared.rounded(asdict(score.errors))
            for _, _, _, scores in rows
            for score in scores
        ],
        "provenance": run.provenance(
            [loaded.source],
            [(file, sha256_of(file)) for place in places for file in place.map.files],
            units="shares; seconds",
        ),
    }
    head = ["set", "method", "photos", "completeness", "AbsRel", "< 1.25", "within 5 %", "of all pixels", "seconds"]
    body = []
    for place, method, seconds, scores in rows:
        mean = benchmark.mean_errors([score.errors for score in scores])
        shares = [f"{v:.1%}" for v in (mean.delta, mean.close, mean.close_of_all)]
        cells = [f"{mean.completeness:.1%}", f"{mean.abs_rel:.4f}", *shares, f"{seconds:.1f}"]
        body.append([place, method, str(len(scores)), *cells])
    shared.finish(result, target, as_json, shared.markdown(head, body))
