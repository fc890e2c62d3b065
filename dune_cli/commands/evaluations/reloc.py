"""`dune eval reloc`: photos left out of a map and found in it again, photos of other places refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.evaluations import shared
from dune_cli.commands.options import GroupedCommand

if TYPE_CHECKING:
    from dune_cli.evaluation.localization import LocalizationSummary, PosedSet, QueryScore

ALL = "all"


@click.command("reloc", cls=GroupedCommand)
@click.argument("root")
@shared.columns
@shared.sets()
@click.option(
    "--min-confidence",
    type=options.FiniteRange(0, 1),
    metavar="C",
    help="Give out no pose below it.  [default: that of dune reloc]",
)
@options.output(required=False, text="Also write the JSON, with every query's score, to this .json file.")
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
    min_confidence: float | None,
    output: str | None,
    overwrite: bool,
    as_json: bool,
    seed: int,
    device: str,
    dtype: str,
) -> None:
    """Poses in a map of the photos under ROOT, whose cameras.json files hold intrinsics and true poses.

    Each photo is left out once: the others, at their true poses, are the map that dune reloc --map finds it in. Near is
    within 2 degrees and 0.25 m (5 % of the largest distance between two cameras where lengths are arbitrary). Then the
    photos of every other set are looked for in the map, where they are not. The control takes the pose of the map photo
    that has the most matches with the query. Queries without a pose count as infinitely wrong in the medians.

    \b
    Example: dune eval reloc data/multiview --matcher sift,xfeat-lighterglue -o table.json
    """
    from dataclasses import asdict

    from dune_cli.evaluation import localization
    from dune_cli.io import outputs
    from dune_cli.provenance import Run, sha256_of
    from dune_cli.sfm.localization import LocalizationConfig

    target = outputs.check_output(output, [".json"], overwrite) if output else None
    places = localization.read_posed_sets(root, sets)
    checks.matchers(matchers, model, encoder)
    config = LocalizationConfig(seed=seed) if min_confidence is None else LocalizationConfig(min_confidence, seed=seed)
    run = Run(seed=seed)
    with run.stage("load"):
        columns = shared.load_columns(matchers, model, encoder, device, dtype)
    scores: dict[str, list[QueryScore]] = {name: [] for name in columns}
    with run.stage("evaluate"):
        jobs = [(name, place) for name in columns for place in places]
        for name, place in console.progress(jobs, "places", len(jobs), "place"):
            others = [other for other in places if other is not place]
            scores[name] += localization.score_set(columns[name], place, others, config)
    rows = _rows(places, scores)
    result = {
        "schema": "dune.eval-reloc/1",
        "root": root,
        "near": {"degrees": localization.NEAR_DEG, "metres": localization.NEAR_M, "share": localization.NEAR_SHARE},
        "columns": [
            {"matcher": name, "working_size_px": m.working_size_px, "weights": m.source.name}
            for name, m in columns.items()
        ],
        "sets": [
            {"set": p.name, "photos": len(p.map.images), "scale": p.map.scale, "extent": round(p.extent, 4)}
            for p in places
        ],
        "rows": [
            {"set": name, "scores": {column: shared.rounded(asdict(summary)) for column, summary in row.items()}}
            for name, row in rows
        ],
        "queries": {name: [shared.rounded(asdict(score)) for score in found] for name, found in scores.items()},
        "provenance": run.provenance(
            [matcher.source for matcher in columns.values()],
            [(file, sha256_of(file)) for place in places for file in place.map.files],
            units="degrees; metres or the set's own unit; seconds",
        ),
    }
    shared.finish(result, target, as_json, _table(rows, list(columns)))


def _rows(
    places: Sequence[PosedSet], scores: Mapping[str, Sequence[QueryScore]]
) -> list[tuple[str, dict[str, LocalizationSummary]]]:
    """(set, column -> summary) of each place, and of all where they are several."""
    from dune_cli.evaluation.localization import summarise

    rows = []
    for place in places:
        row = {name: summarise([s for s in found if s.place == place.name], places) for name, found in scores.items()}
        rows.append((place.name, row))
    if len(places) > 1:
        rows.append((ALL, {name: summarise(found, places) for name, found in scores.items()}))
    return rows


def _table(rows: list[tuple[str, dict[str, LocalizationSummary]]], columns: list[str]) -> str:
    """One table a question, with the same rows and columns; the control is the first matcher's."""
    control = "most matches"
    blocks = {
        "located; near (2 degrees and 0.25 m or 5 % of the size)": (
            lambda s: f"{s.located}/{s.queries}; {s.near:.0%}",
            lambda s: f"{s.control_near:.0%}",
        ),
        "median errors: degrees, % of the size": (
            lambda s: f"{s.rotation_deg:.2f} {100 * s.position_share:.2f}",
            lambda s: f"{s.control_rotation_deg:.2f} {100 * s.control_position_share:.2f}",
        ),
        "photos of other places refused": (
            lambda s: f"{s.refused:.0%} of {s.wrong_queries}" if s.wrong_queries else "-",
            None,
        ),
        "median seconds a query": (lambda s: f"{s.seconds:.2f}", None),
    }
    tables = {}
    for title, (show, show_control) in blocks.items():
        tables[title] = [["set", *columns, *([control] if show_control else [])]]
        for name, row in rows:
            cells = [show(row[column]) for column in columns]
            tables[title].append([name, *cells, *([show_control(row[columns[0]])] if show_control else [])])
    return shared.text_blocks(tables)
