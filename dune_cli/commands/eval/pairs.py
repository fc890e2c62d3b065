"""`dune eval pairs`: matchers and two-view models as columns, sets and sizes as rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.eval import _common as common
from dune_cli.commands.eval._common import BenchmarkOutput, SetOptions
from dune_cli.commands.matching import MatchersOptions
from dune_cli.commands.options import SeededOptions, option
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.evaluation.pairs import ConfidenceSample, PairScore, PairSummary, PosedPair
    from dune_cli.matchers.matcher import Matcher

CHANCE = "chance"
Scores = dict[str, list["PairScore"]]


@options.group("Input")
class PairOptions(SetOptions):
    sets: tuple[str, ...] = options.changed(
        SetOptions, "sets", help="Sets to evaluate, which are folders of ROOT. easy: all but wide."
    )
    limit: int | None = option("--limit N", "Maximum number of pairs per set.", options.COUNT, default_text="all")
    sizes_px: tuple[int, ...] = option(
        "--sizes PX,...",
        "Long sides to reduce the photos to before matching, in pixels. 0: the original size. The matcher then resizes "
        "to its own working size.",
        options.PixelList(32, "the original size", "480,0"),
        "480",
        heading="Matching",
        aliases=["--size"],
    )
    threshold_px: float = option(
        "--threshold-px PX",
        "Inlier threshold of MAGSAC, in pixels of the matched image.",
        options.POSITIVE_NUMBER,
        1.0,
        heading="Matching",
    )
    calibration: bool = option(
        "--calibration",
        "Print the errors of the poses of 'dune reloc' by their confidence instead, at the original size.",
        heading="Advanced",
    )


@options.verb("pairs")
def command(
    *,
    root: str = options.argument(
        "ROOT", "Folder of photo pairs, whose pairs.json files hold intrinsics and true poses."
    ),
    matchers: MatchersOptions,
    given: PairOptions,
    compute: SeededOptions,
    output: BenchmarkOutput,
) -> None:
    """Evaluate matchers by the relative pose of photo pairs (AUC@5/10/20).

    The error of a pair is the larger of its rotation and translation-direction errors in degrees. A missing pose counts
    as 180 degrees. Poses are those of 'dune reloc', the best of eight runs of MAGSAC, with the true intrinsics. Seconds
    per pair are medians without decoding. The column "chance" is the control: no rotation and a random direction.

    \b
    Example: dune eval pairs data/pairs --matchers sift,xfeat-lighterglue,aliked-lightglue -o table.json
             dune eval pairs data/pairs --calibration --matchers sift,xfeat-lighterglue,dune
             dune eval pairs data/pairs --model two_view.pth --encoder dune.pth --sizes 480,0 --set easy
    """
    from dune_cli.evaluation import pairs as benchmark
    from dune_cli.provenance import sha256_of

    target = output.file(".json")
    pairs = benchmark.select_pairs(benchmark.read_pairs(root), given.sets, given.limit)
    matchers.check_present()
    run = Run(seed=compute.seed)
    with run.stage("load"):
        columns = matchers.load(compute)
    if given.calibration:
        result, table = _calibrate(root, pairs, columns, run)
        output.finish(result, target, table)
        return
    scores: Scores = {name: [] for name in columns}
    with run.stage("evaluate"):
        for pair in console.progress(pairs, "pairs", total=len(pairs), unit="pair"):
            for name, score in benchmark.score_pair(columns, pair, given.sizes_px, given.threshold_px, compute.seed):
                scores[name].append(score)
    rows = _rows(pairs, given.sizes_px, scores, compute.seed)
    files = sorted(Path(root).rglob("pairs.json"))
    result = {
        "schema": "dune.eval-pairs/1",
        "root": root,
        "threshold_px": given.threshold_px,
        "columns": common.matcher_columns(columns),
        "rows": [
            {
                "set": name,
                "size_px": size,
                "pairs": count,
                "scores": {key: common.rounded(value, 4) for key, value in row.items()},
            }
            for name, size, count, row in rows
        ],
        "pairs": {
            name: [common.rounded(score, 4) | {"error_deg": round(score.error_deg, 4)} for score in scored]
            for name, scored in scores.items()
        },
        "provenance": run.provenance(
            [matcher.source for matcher in columns.values()],
            [(file, sha256_of(file)) for file in files],
            units="degrees, seconds",
            threads=_threads(),
        ),
    }
    output.finish(result, target, _table(rows, [*columns, CHANCE]))


def _calibrate(
    root: str, pairs: Sequence[PosedPair], columns: dict[str, Matcher], run: Run
) -> tuple[dict[str, Any], str]:
    """The result and the table of --calibration."""
    from dune_cli.evaluation import pairs as benchmark

    samples: dict[str, list[ConfidenceSample]] = {name: [] for name in columns}
    with run.stage("evaluate"):
        for pair in console.progress(pairs, "pairs", total=len(pairs), unit="pair"):
            for name, pose in benchmark.confidence_samples(columns, pair, run.seed or 0):
                samples[name].append(pose)
    bins = {name: benchmark.confidence_calibration(poses) for name, poses in samples.items()}
    result = {
        "schema": "dune.eval-calibration/1",
        "root": root,
        "asked": len(pairs),
        "bins": {name: [common.rounded(one, 4) for one in row] for name, row in bins.items()},
        "poses": {name: [common.rounded(pose, 4) for pose in poses] for name, poses in samples.items()},
        "provenance": run.provenance([m.source for m in columns.values()], [], units="degrees"),
    }
    rows = [["confidence", *columns]]
    for row in zip(*bins.values()):
        cells = [f"{one.poses}: {one.within5:.2f} {one.within10:.2f}" if one.poses else "0" for one in row]
        rows.append([f"{row[0].low:.2f} to {row[0].high:.2f}", *cells])
    title = f"of {len(pairs)} pairs, poses given out: share within 5 and 10 degrees, by confidence"
    return result, common.markdown_blocks({title: rows})


def _rows(
    pairs: Sequence[PosedPair], sizes_px: Sequence[int], scores: Scores, seed: int
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
    return common.markdown_blocks(tables)


def _threads() -> int:
    import torch

    return torch.get_num_threads()
