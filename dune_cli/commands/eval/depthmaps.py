"""`dune eval depthmaps`: the dense part of reconstruct against measured depth, a row a set and method."""

from __future__ import annotations

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.dense import DenseOptions
from dune_cli.commands.eval import _common as common
from dune_cli.commands.eval._common import BenchmarkOutput, SetOptions
from dune_cli.commands.matching import MatchersOptions, MatchingOptions, check_matchers
from dune_cli.commands.options import SeededOptions
from dune_cli.errors import UserError
from dune_cli.provenance import Run

QUALITIES = ("low", "medium", "high")


@options.group("Dense")
class QualityOptions(SetOptions):
    qualities: tuple[str, ...] = options.option(
        "--qualities NAME,...",
        "Sizes of the depth maps, each a row: low, medium, high.",
        options.NameList(),
        "medium",
        aliases=["--quality"],
    )

    fill: bool = options.option(
        "--fill/--no-fill",
        "Fill the holes of the maps too, and score what is filled beside controls.",
        default=False,
    )

    def check(self) -> None:
        """UserError for an unknown quality, or none."""
        unknown = [name for name in self.qualities if name not in QUALITIES]
        if unknown or not self.qualities:
            raise UserError(f"unknown quality {', '.join(unknown) or '(none)'}; allowed: {', '.join(QUALITIES)}")


@options.verb("depthmaps")
def command(
    *,
    root: str = options.argument("ROOT", "Folder of photo sets, whose cameras.json files name measured depth maps."),
    matching: MatchingOptions = options.adapt(model=options.changed(MatchersOptions, "model")),
    sets: QualityOptions,
    compute: SeededOptions,
    output: BenchmarkOutput,
) -> None:
    """Evaluate the dense depth of photo sets against measured depth.

    Depth is computed at the true cameras. Completeness is the fraction of the measured pixels that have a depth.
    AbsRel, the fraction with a ratio below 1.25 and the fraction within 5 % count those pixels. The last column is the
    fraction of all measured pixels within 5 %. Values are means over the photos. The controls are the true median depth
    everywhere, and the depth of the nearest sparse point.

    \b
    Example: dune eval depthmaps data/multiview --set hololens --qualities low,medium
    """
    from dune_cli.evaluation.metrics import mean_depth_errors
    from dune_cli.evaluation.posed_sets import read_posed_sets
    from dune_cli.optional import import_pycolmap

    sets.check()
    target = output.file(".json")
    places = read_posed_sets(root, sets.sets)
    check_matchers([matching.matcher], matching.model, matching.encoder)

    from dune_cli.evaluation import depthmaps as benchmark

    import_pycolmap("dune eval depthmaps")
    run = Run(seed=compute.seed)
    with run.stage("load"):
        matcher = matching.load_matcher(compute, photos=max(len(place.map.images) for place in places))
    rows: list[tuple[str, str, float, list[benchmark.ViewScore]]] = []
    fill = DenseOptions(fill=sets.fill).load_fill(compute, run)
    with run.stage("evaluate"):
        for place in console.progress(places, "sets", len(places), "set"):
            scored = list(benchmark.score_set(place, matcher, sets.qualities, compute.device, compute.seed, fill))
            if not scored:
                console.note(f"{place.name} has no measured depth")
            rows += [(place.name, *row) for row in scored]
    if not rows:
        raise UserError(f"no set under {root} has measured depth; its frames must name a depth PNG")
    means = [mean_depth_errors([score.errors for score in scores]) for *_, scores in rows]
    result = {
        "schema": "dune.eval-depthmaps/1",
        "root": root,
        "matcher": matcher.name,
        "rows": [
            {"set": place, "method": method, "seconds": round(seconds, 3)} | common.rounded(mean)
            for (place, method, seconds, _), mean in zip(rows, means)
        ],
        "photos": [
            {"set": score.set_name, "image": score.image, "method": score.method} | common.rounded(score.errors)
            for *_, scores in rows
            for score in scores
        ],
        "provenance": run.provenance(
            [matcher.source, *(() if fill is None else fill.sources)], common.set_files(places), units="shares; seconds"
        ),
    }
    head = ["set", "method", "photos", "completeness", "AbsRel", "< 1.25", "within 5 %", "of all pixels", "seconds"]
    body = [
        [
            place,
            method,
            str(len(scores)),
            f"{mean.completeness:.1%}",
            f"{mean.abs_rel:.4f}",
            *(f"{value:.1%}" for value in (mean.delta, mean.close, mean.close_of_all)),
            f"{seconds:.1f}",
        ]
        for (place, method, seconds, scores), mean in zip(rows, means)
    ]
    output.finish(result, target, common.markdown(head, body))
