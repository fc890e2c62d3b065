"""`dune eval multiview`: reconstructions of photo sets with known cameras, a row a set and method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.evaluations import shared
from dune_cli.commands.options import GroupedCommand
from dune_cli.errors import UserError

if TYPE_CHECKING:
    from dune_cli.evaluation.multiview import Method, SetScore
    from dune_cli.provenance import Source

CONTROL, POINTMAP = "pycolmap-sift", "pointmap"


@click.command("multiview", cls=GroupedCommand)
@click.argument("root")
@click.option(
    "--matcher",
    "matchers",
    metavar="NAME,…",
    callback=options.names,
    help="Matchers, each a row; auto: the best one present; pointmap: a two-view --model's point maps.  [default: "
    "auto; pointmap with --model]",
)
@click.option("--model", metavar="FILE|NAME", help="Two-view model for pointmap, or the matcher's (dune, mast3r).")
@shared.encoder
@shared.sets()
@click.option(
    "--intrinsics",
    type=click.Choice(["known", "unknown"]),
    default="known",
    show_default=True,
    help="known: the true K, without distortion; unknown: what EXIF tells, else found with the cameras.",
)
@click.option("--pairs", default="auto", show_default=True, metavar="WAY", help="As in dune reconstruct.")
@click.option("--mapper", type=click.Choice(["incremental", "global"]), default="incremental", show_default=True)
@click.option("--control/--no-control", default=True, show_default=True, help="pycolmap with its own SIFT as a row.")
@options.output(required=False, text="Also write the JSON to this .json file.")
@options.as_json
@options.seed
@options.compute
@options.common
def command(
    root: str,
    matchers: list[str],
    model: str | None,
    encoder: str | None,
    sets: list[str],
    intrinsics: str,
    pairs: str,
    mapper: str,
    control: bool,
    output: str | None,
    overwrite: bool,
    as_json: bool,
    seed: int,
    device: str,
    dtype: str,
) -> None:
    """Cameras of the photo sets under ROOT, whose cameras.json files hold intrinsics and true poses.

    Every method reconstructs each set from nothing. Its cameras are laid over the true ones by a similarity; errors are
    medians over the photos it placed. AUC counts all pairs of photos by the larger of the rotation and translation-
    direction errors, 180 degrees where one is missing. Of sets in metres, scale is by how much lengths are off once
    the distance of the first two placed photos is given (and the median over every two neighbours). Seconds are the
    whole run's, decoding included.

    \b
    Example: dune eval multiview data/multiview --matcher sift,xfeat-lighterglue -o table.json
    """
    from dune_cli.evaluation.localization import read_posed_sets
    from dune_cli.io import outputs
    from dune_cli.provenance import Run, sha256_of

    target = outputs.check_output(output, [".json"], overwrite) if output else None
    places = read_posed_sets(root, sets)
    if POINTMAP in matchers and model is None:
        raise UserError("pointmap needs a two-view model; give --model FILE or a registry name")
    matching = [name for name in matchers if name != POINTMAP]
    checks.matchers(matching, *((model, encoder) if len(matching) == len(matchers) else ()))
    checks.weights(model, encoder)

    from dune_cli.evaluation import multiview as benchmark

    run = Run(seed=seed)
    with run.stage("load"):
        methods, sources = _methods(matchers, model, encoder, device, dtype, pairs, mapper, seed, control)
    scores = []
    with run.stage("evaluate"):
        jobs = [(place, name) for place in places for name in methods]
        for place, name in console.progress(jobs, "sets", len(jobs), "run"):
            scores.append(benchmark.run_method(place, name, methods[name], intrinsics == "known"))
    result = {
        "schema": "dune.eval-multiview/1",
        "root": root,
        "intrinsics": intrinsics,
        "sets": [
            {"set": p.name, "photos": len(p.map.images), "scale": p.map.scale, "extent": round(p.extent, 4)}
            for p in places
        ],
        "rows": [benchmark.as_dict(score) for score in scores],
        "provenance": run.provenance(
            sources,
            [(file, sha256_of(file)) for place in places for file in place.map.files],
            units="degrees; metres or the set's own unit; seconds",
        ),
    }
    shared.finish(result, target, as_json, table(scores))


def _methods(
    names: list[str],
    model: str | None,
    encoder: str | None,
    device: str,
    dtype: str,
    pairs: str,
    mapper: str,
    seed: int,
    control: bool,
) -> tuple[dict[str, Method], list[Source]]:
    """The rows by name, in the order asked for, and what runs in them."""
    from dune_cli import optional
    from dune_cli.evaluation import multiview as benchmark
    from dune_cli.sfm.pairs import STRATEGIES
    from dune_cli.tasks.reconstruct.many import ManyConfig
    from dune_cli.tasks.reconstruct.pointmaps import ManyPointMapsConfig

    if pairs not in STRATEGIES:
        raise UserError(f"--pairs {pairs!r} is unknown here; allowed: {', '.join(STRATEGIES)}")
    optional.import_pycolmap("dune eval multiview")
    names = names or ([POINTMAP] if model else ["auto"])
    matching = [name for name in names if name != POINTMAP]
    takes = POINTMAP not in names or "mast3r" in names
    given = (model, encoder) if takes else (None, None)
    columns = shared.load_columns(matching, *given, device, dtype) if matching else {}
    methods: dict[str, Method] = {}
    sources = [matcher.source for matcher in columns.values()]
    for name, matcher in columns.items():
        methods[name] = benchmark.matcher_method(matcher, ManyConfig(pairs=pairs, mapper=mapper, seed=seed))
    if POINTMAP in names:
        from dune_cli.checkpoints.loader import load_two_view

        assert model is not None
        network = load_two_view(model, encoder, device, dtype)
        sources.append(network.source)
        methods[POINTMAP] = benchmark.pointmap_method(network, ManyPointMapsConfig(pairs=pairs, seed=seed))
    if control:
        methods[CONTROL] = benchmark.sift_method(seed)
    return methods, sources


def table(scores: Sequence[SetScore]) -> str:
    """Markdown, a row a set and method."""
    head = [
        "set",
        "method",
        "registered",
        "rotation °",
        "centre",
        "% of extent",
        "pair rot °",
        "pair dir °",
        "AUC@5",
        "AUC@10",
        "AUC@30",
        "scale off (all)",
        "seconds",
    ]
    rows = [
        [
            s.set_name,
            s.method,
            f"{s.registered}/{s.photos}",
            *(_number(v, digits) for v, digits in ((s.rotation_deg, 2), (s.centre, 3), (100 * s.centre_share, 2))),
            *(_number(v, 2) for v in (s.pair_rotation_deg, s.pair_direction_deg)),
            *(_number(v, 3) for v in (s.auc5, s.auc10, s.auc30)),
            "-"
            if s.scale_error != s.scale_error
            else f"{100 * s.scale_error:.1f} % ({100 * s.scale_error_neighbours:.1f} %)",
            f"{s.seconds:.1f}",
        ]
        for s in scores
    ]
    return shared.markdown(head, rows)


def _number(value: float, digits: int) -> str:
    return "-" if value != value else f"{value:.{digits}f}"
