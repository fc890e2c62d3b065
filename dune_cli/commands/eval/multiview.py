"""`dune eval multiview`: reconstructions of photo sets with known cameras, a row a set and method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.checks import weights
from dune_cli.commands.eval import _common as common
from dune_cli.commands.eval._common import BenchmarkOutput, SetOptions
from dune_cli.commands.matching import MatchersOptions, check_matchers, mapper_option, pairs_option
from dune_cli.commands.options import SeededOptions, option
from dune_cli.errors import UserError
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.evaluation.multiview import Method, SetScore
    from dune_cli.provenance import Source

CONTROL, POINTMAP, AUTO = "pycolmap-sift", "pointmap", "auto"


@options.group("Matching")
class MethodOptions(MatchersOptions):
    matchers: tuple[str, ...] = options.changed(
        MatchersOptions,
        "matchers",
        default_text="auto; pointmap with --model",
        help="Feature matchers. auto: those of 'dune reconstruct', sift and what takes on the photos that it leaves "
        "out; 'dune doctor' lists all. pointmap: the point maps of a two-view --model.",
    )
    model: str | None = options.model_of(
        "a two-view model for pointmap, or the model of the matcher dune or mast3r", heading="Model"
    )
    pairs: str = pairs_option()
    mapper: str = mapper_option()
    control: bool = option(
        "--control/--no-control", "Add pycolmap with its own SIFT as a row.", default=True, heading="Advanced"
    )

    def check_methods(self) -> None:
        """DuneError for a model or a matcher that cannot run on this machine."""
        if POINTMAP in self.matchers and self.model is None:
            raise UserError("pointmap needs a two-view model; give --model FILE or a registry name")
        matching = [name for name in self.matchers if name != POINTMAP]
        check_matchers(matching, *((self.model, self.encoder) if len(matching) == len(self.matchers) else ()))
        weights(self.model, self.encoder)


@options.verb("multiview")
def command(
    *,
    root: str = options.argument("ROOT", common.PHOTO_SETS),
    methods: MethodOptions,
    sets: SetOptions,
    intrinsics: str = option(
        "--intrinsics-mode [known|unknown]",
        "Intrinsics of the photos. known: the true cameras. unknown: EXIF, else estimated.",
        default="known",
        heading="Cameras",
        aliases=["--intrinsics"],
    ),
    compute: SeededOptions,
    output: BenchmarkOutput,
) -> None:
    """Evaluate the cameras of reconstructed photo sets.

    Every method reconstructs each set without a cache. A similarity aligns its cameras to the true ones. Errors are
    medians over the registered photos. AUC counts all pairs of photos by the larger of the rotation and the
    translation-direction error, which is 180 degrees for unregistered photos. For sets in metres, the scale error is
    that of lengths once the distance of the first two registered photos is given, and in parentheses the median over
    all pairs of neighbours. Seconds are those of the whole run with decoding,
    on the clock and of all processors together.

    \b
    Example: dune eval multiview data/multiview --matchers sift,xfeat-lighterglue -o table.json
    """
    from dune_cli.evaluation.posed_sets import read_posed_sets

    target = output.file(".json")
    places = read_posed_sets(root, sets.sets)
    methods.check_methods()

    from dune_cli.evaluation import multiview as benchmark

    run = Run(seed=compute.seed)
    with run.stage("load"):
        loaded, sources = _load_methods(methods, compute)
    scores = []
    with run.stage("evaluate"):
        jobs = [(place, name) for place in places for name in loaded]
        for place, name in console.progress(jobs, "sets", len(jobs), "run"):
            scores.append(benchmark.run_method(place, name, loaded[name], intrinsics == "known"))
    result = {
        "schema": "dune.eval-multiview/1",
        "root": root,
        "intrinsics": intrinsics,
        "sets": common.described_sets(places),
        "rows": [common.rounded(score) for score in scores],
        "provenance": run.provenance(
            sources, common.set_files(places), units="degrees; metres or the set's own unit; seconds"
        ),
    }
    output.finish(result, target, table(scores))


def _load_methods(given: MethodOptions, compute: SeededOptions) -> tuple[dict[str, Method], list[Source]]:
    """The rows by name, in the order asked for, and what runs in them."""
    from dune_cli.evaluation import multiview as benchmark
    from dune_cli.matchers import registry
    from dune_cli.optional import import_pycolmap
    from dune_cli.sfm.pairs import STRATEGIES
    from dune_cli.tasks.reconstruct.config import MatchesConfig, PointmapsConfig

    if given.pairs not in STRATEGIES:
        raise UserError(f"--pairs {given.pairs!r} is unknown here; allowed: {', '.join(STRATEGIES)}")
    import_pycolmap("dune eval multiview")
    names = given.matchers or ((POINTMAP,) if given.model else (AUTO,))
    matching = tuple(name for name in names if name not in (POINTMAP, AUTO))
    model = (given.model, given.encoder) if POINTMAP not in names or "mast3r" in names else (None, None)
    matchers = MatchersOptions(matchers=matching, model=model[0], encoder=model[1])
    columns = matchers.load(compute) if matching else {}
    methods: dict[str, Method] = {}
    sources = [matcher.source for matcher in columns.values()]
    config = MatchesConfig(pairs=given.pairs, mapper=given.mapper, seed=compute.seed)
    if AUTO in names:
        first, fallback, note = registry.load_cascade(compute.device, compute.dtype)
        console.note(note)
        sources.insert(0, first.source)
        methods[AUTO] = benchmark.matcher_method(first, config, fallback)
    for name, matcher in columns.items():
        methods[name] = benchmark.matcher_method(matcher, config)
    if POINTMAP in names:
        from dune_cli.checkpoints.loader import load_two_view

        assert given.model is not None
        network = load_two_view(given.model, given.encoder, compute.device, compute.dtype)
        sources.append(network.source)
        methods[POINTMAP] = benchmark.pointmap_method(network, PointmapsConfig(pairs=given.pairs, seed=compute.seed))
    if given.control:
        methods[CONTROL] = benchmark.sift_method(compute.seed)
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
        "processor s",
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
            f"{s.processor_seconds:.1f}",
        ]
        for s in scores
    ]
    return common.markdown(head, rows)


def _number(value: float, digits: int) -> str:
    return "-" if value != value else f"{value:.{digits}f}"
