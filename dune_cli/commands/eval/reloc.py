"""`dune eval reloc`: photos left out of a map and localized in it, photos of other places refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.eval import _common as common
from dune_cli.commands.eval._common import BenchmarkOutput, SetOptions
from dune_cli.commands.matching import MatchersOptions
from dune_cli.commands.options import SeededOptions
from dune_cli.commands.reloc import RelocMatching
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.evaluation.localization import LocalizationSummary, QueryScore
    from dune_cli.evaluation.posed_sets import PosedSet
    from dune_cli.matchers.matcher import Matcher

ALL, AUTO = "all", "auto"


@options.verb("reloc")
def command(
    *,
    root: str = options.argument("ROOT", common.PHOTO_SETS),
    matchers: MatchersOptions,
    sets: SetOptions,
    min_confidence: float | None = options.changed(RelocMatching, "min_confidence"),
    compute: SeededOptions,
    output: BenchmarkOutput,
) -> None:
    """Evaluate the localization of photos in maps, and the refusal of others.

    Each photo is left out once, and dune reloc --map localizes it in the map of the others at their true poses. A pose
    is near within 2 degrees and 0.25 m, or 5 % of the largest distance between two cameras where the scale is unknown.
    Then the photos of every other set are localized in the map, where they are not. The control is the pose of the map
    photo with the most matches. Queries without a pose count as infinite errors in the medians.

    The column "auto" is the cascade of dune reloc --map: sift at the photos' size, and the best matcher where that
    gives no confident pose.

    \b
    Example: dune eval reloc data/multiview --matchers sift,xfeat-lighterglue -o table.json
             dune eval reloc data/multiview --matchers auto,sift,aliked-lightglue
    """
    from dune_cli.evaluation.posed_sets import read_posed_sets

    target = output.file(".json")
    places = read_posed_sets(root, sets.sets)
    matchers.check_present()

    from dune_cli.evaluation import localization
    from dune_cli.sfm.localization import LocalizationConfig

    confidence = {} if min_confidence is None else {"min_confidence": min_confidence}
    config = LocalizationConfig(seed=compute.seed, **confidence)
    run = Run(seed=compute.seed)
    with run.stage("load"):
        columns, parts = _load(matchers, compute)
    loaded = dict.fromkeys(matcher for members in parts.values() for matcher in members)
    scores: dict[str, list[QueryScore]] = {name: [] for name in parts}
    with run.stage("evaluate"):
        for place in console.progress(places, "places", len(places), "place"):
            others = [other for other in places if other is not place]
            for name, found in localization.score_columns(parts, place, others, config).items():
                scores[name] += found
    rows = _rows(places, scores)
    result = {
        "schema": "dune.eval-reloc/1",
        "root": root,
        "near": {"degrees": localization.NEAR_DEG, "metres": localization.NEAR_M, "share": localization.NEAR_SHARE},
        "columns": common.matcher_columns(columns),
        "sets": common.described_sets(places),
        "rows": [
            {"set": name, "scores": {column: common.rounded(summary) for column, summary in row.items()}}
            for name, row in rows
        ],
        "queries": {name: [common.rounded(score) for score in found] for name, found in scores.items()},
        "provenance": run.provenance(
            [matcher.source for matcher in loaded],
            common.set_files(places),
            units="degrees; metres or the set's own unit; seconds",
        ),
    }
    output.finish(result, target, _table(rows, list(columns)))


def _load(
    matchers: MatchersOptions, compute: SeededOptions
) -> tuple[dict[str, Matcher], dict[str, tuple[Matcher, ...]]]:
    """The matcher of each column, for "auto" the cascade's last one, and the matchers that it is made of."""
    from dune_cli.matchers import registry

    if matchers.model is not None or (matchers.matchers and AUTO not in matchers.matchers):
        columns = matchers.load(compute)
        return columns, {name: (matcher,) for name, matcher in columns.items()}
    names = list(matchers.matchers) or [AUTO]
    first, load_last, note = registry.load_cascade(compute.device, compute.dtype)
    console.note(note)
    single = [name for name in names if name != AUTO]
    columns = replace(matchers, matchers=tuple(single)).load(compute) if single else {}
    parts: dict[str, tuple[Matcher, ...]] = {name: (matcher,) for name, matcher in columns.items()}
    best = registry.choose_auto()[0]
    last = None if load_last is None else columns.get(best) or load_last()
    parts[AUTO] = (first,) if last is None else (first, last)
    columns[AUTO] = parts[AUTO][-1]
    return {name: columns[name] for name in names}, {name: parts[name] for name in names}


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
    """Four tables with the same rows and columns; the control is the first matcher's."""
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
    return common.markdown_blocks(tables)
