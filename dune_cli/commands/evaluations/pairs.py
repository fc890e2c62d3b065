"""`dune eval pairs`: matchers and two-view models as columns, sets and sizes as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.evaluations import shared
from dune_cli.commands.options import GroupedCommand

if TYPE_CHECKING:
    from pathlib import Path

    from dune_cli.evaluation.pairs import ConfidenceSample, PairScore, PairSummary, PosedPair
    from dune_cli.matchers.matcher import Matcher
    from dune_cli.provenance import Run

CHANCE = "chance"
Scores = dict[str, list["PairScore"]]


def _sizes(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    try:
        sizes = [int(part) for part in value.split(",")]
    except ValueError:
        sizes = [-1]
    if any(size != 0 and size < 32 for size in sizes):
        raise click.BadParameter(f"{value!r}: whole numbers from 32 on, or 0 for the original size, such as 480,0")
    return list(dict.fromkeys(sizes))


@click.command("pairs", cls=GroupedCommand)
@click.argument("root")
@shared.columns
@click.option(
    "--size",
    "sizes_px",
    default="480",
    show_default=True,
    metavar="PX,…",
    callback=_sizes,
    help="Reduce the photos to this long side first, in pixels (0: as they are). The matcher then works at its own.",
)
@shared.sets("Only these sets; easy: all but wide.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most N pairs of each set.")
@click.option(
    "--threshold-px",
    type=options.FiniteRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Inlier threshold of MAGSAC, in pixels of the matched image.",
)
@click.option(
    "--calibration",
    is_flag=True,
    help="Print instead how far off the poses of 'dune reloc' are, by their confidence; photos as they are.",
)
@options.output(required=False, text="Also write the JSON, with every pair's score, to this .json file.")
@options.as_json
@options.seed
@options.compute
@options.common
def command(
    root: str,
    matchers: list[str],
    model: str | None,
    encoder: str | None,
    sizes_px: list[int],
    sets: list[str],
    limit: int | None,
    threshold_px: float,
    calibration: bool,
    output: str | None,
    overwrite: bool,
    as_json: bool,
    seed: int,
    device: str,
    dtype: str,
) -> None:
    """Relative pose of the photo pairs under ROOT, whose pairs.json files hold intrinsics and true poses.

    A pair's error is the larger of its rotation and translation-direction errors in degrees; no pose counts as 180.
    Poses come from MAGSAC on the matches, with the true intrinsics. Seconds a pair are medians and leave out decoding.
    The column "chance" is the control: no rotation and a random direction.

    \b
    Example: dune eval pairs data/pairs --matcher sift,xfeat-lighterglue,aliked-lightglue -o table.json
             dune eval pairs data/pairs --calibration --matcher sift,xfeat-lighterglue,dune
             dune eval pairs data/pairs --model two_view.pth --encoder dune.pth --size 480,0 --set easy
    """
    from dataclasses import asdict
    from pathlib import Path

    from dune_cli.evaluation import pairs as benchmark
    from dune_cli.io import outputs
    from dune_cli.provenance import Run, sha256_of

    target = outputs.check_output(output, [".json"], overwrite) if output else None
    pairs = benchmark.select_pairs(benchmark.read_pairs(root), sets, limit)
    checks.matchers(matchers, model, encoder)
    run = Run(seed=seed)
    with run.stage("load"):
        columns = shared.load_columns(matchers, model, encoder, device, dtype)
    if calibration:
        _calibrate(root, pairs, columns, run, target, as_json)
        return
    scores: Scores = {name: [] for name in columns}
    with run.stage("evaluate"):
        for pair in console.progress(pairs, "pairs", total=len(pairs), unit="pair"):
            for name, score in benchmark.score_pair(columns, pair, sizes_px, threshold_px, seed):
                scores[name].append(score)
    rows = _rows(pairs, sizes_px, scores, seed)
    files = sorted(Path(root).rglob("pairs.json"))
    result = {
        "schema": "dune.eval-pairs/1",
        "root": root,
        "threshold_px": threshold_px,
        "columns": [
            {"matcher": name, "working_size_px": m.working_size_px, "weights": m.source.name}
            for name, m in columns.items()
        ],
        "rows": [
            {
                "set": name,
                "size_px": size,
                "pairs": count,
                "scores": {key: shared.rounded(asdict(value), 4) for key, value in row.items()},
            }
            for name, size, count, row in rows
        ],
        "pairs": {name: [benchmark.as_dict(score) for score in found] for name, found in scores.items()},
        "provenance": run.provenance(
            [matcher.source for matcher in columns.values()],
            [(file, sha256_of(file)) for file in files],
            units="degrees, seconds",
            threads=_threads(),
        ),
    }
    shared.finish(result, target, as_json, _table(rows, [*columns, CHANCE]))


def _calibrate(
    root: str, pairs: Sequence[PosedPair], columns: dict[str, Matcher], run: Run, target: Path | None, as_json: bool
) -> None:
    from dataclasses import asdict

    from dune_cli.evaluation import pairs as benchmark

    found: dict[str, list[ConfidenceSample]] = {name: [] for name in columns}
    with run.stage("evaluate"):
        for pair in console.progress(pairs, "pairs", total=len(pairs), unit="pair"):
            for name, pose in benchmark.confidence_samples(columns, pair, run.seed or 0):
                found[name].append(pose)
    bins = {name: benchmark.confidence_calibration(poses) for name, poses in found.items()}
    result = {
        "schema": "dune.eval-calibration/1",
        "root": root,
        "asked": len(pairs),
        "bins": {name: [shared.rounded(asdict(one), 4) for one in row] for name, row in bins.items()},
        "poses": {name: [shared.rounded(asdict(pose), 4) for pose in poses] for name, poses in found.items()},
        "provenance": run.provenance([m.source for m in columns.values()], [], units="degrees"),
    }
    rows = [["confidence", *columns]]
    for row in zip(*bins.values()):
        cells = [f"{one.poses}: {one.within5:.2f} {one.within10:.2f}" if one.poses else "0" for one in row]
        rows.append([f"{row[0].low:.2f} to {row[0].high:.2f}", *cells])
    title = f"of {len(pairs)} pairs, poses given out: share within 5 and 10 degrees, by confidence"
    shared.finish(result, target, as_json, shared.text_blocks({title: rows}))


def _rows(
    pairs: Sequence[PosedPair], sizes_px: list[int], scores: Scores, seed: int
) -> list[tuple[str, int, int, dict[str, PairSummary]]]:
    """(set, size, number of pairs, column -> summary) for every set and the aggregate."""
    from dune_cli.evaluation import pairs as benchmark

    rows = []
    for name, members in benchmark.set_groups(pairs).items():
        of_group = [pair for pair in pairs if pair.set_name in members]
        for size in sizes_px:
            row = {
                column: benchmark.summarise([[s for s in found if s.set_name in members and s.size_px == size]])
                for column, found in scores.items()
            }
            row[CHANCE] = benchmark.summarise(benchmark.random_poses(of_group, size, seed))
            rows.append((name, size, len(of_group), row))
    return rows


def _table(rows: list[tuple[str, int, int, dict[str, PairSummary]]], columns: list[str]) -> str:
    """Four tables, one below the other, with the same rows and columns."""
    blocks = {
        "AUC@5 / 10 / 20 of the pose error": lambda s: f"{s.auc5:.3f} {s.auc10:.3f} {s.auc20:.3f}",
        "median error in degrees: rotation, translation direction": lambda s: (
            f"{s.rotation_deg:.2f} {s.translation_deg:.2f}"
        ),
        "medians: matches, inliers; failures": lambda s: f"{s.matches:.0f} {s.inliers:.0f}; {s.failures}",
        "median seconds a pair: matching, with pose": lambda s: f"{s.seconds_matching:.2f} {s.seconds_total:.2f}",
    }
    tables = {}
    for title, show in blocks.items():
        shown = [name for name in columns if name != CHANCE or title.startswith(("AUC", "median error"))]
        tables[title] = [["set", "size px", "pairs", *shown]]
        for name, size, count, row in rows:
            cells = [show(row[column]) for column in shown]
            tables[title].append([name, str(size or "original"), str(count), *cells])
    return shared.text_blocks(tables)


def _threads() -> int:
    import torch

    return torch.get_num_threads()
