"""`dune eval mapping`: many photos by dune and by pycolmap's own pipeline, a row a set and method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.eval import _common as common
from dune_cli.commands.eval._common import BenchmarkOutput
from dune_cli.commands.matching import MatchingOptions, check_matchers, pairs_option
from dune_cli.commands.options import SeededOptions, option
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.evaluation.mapping import MappedSet


@options.group("Matching")
class MappingMethodOptions:
    matcher: str = options.changed(MatchingOptions, "matcher")
    pairs: str = pairs_option()
    threads: int | None = option(
        "--threads N",
        "Number of processors that each method uses.",
        options.COUNT,
        heading="Advanced",
        default_text="all",
    )
    seed: int = options.changed(SeededOptions, "seed")


@options.verb("mapping")
def command(
    *,
    folders: tuple[str, ...] = options.argument("FOLDER...", "Folders of photos, each a set.", nargs=-1, required=True),
    methods: MappingMethodOptions,
    output: BenchmarkOutput,
) -> None:
    """Evaluate the mapping of many photos beside pycolmap.

    Each method gets the photos of a folder and nothing else, in a process of its own, one after the other, on the same
    processors: pycolmap's own SIFT, exhaustive matching and incremental mapping, and 'dune reconstruct --no-dense'.
    Errors are medians over the registered photos after a similarity fit to the poses of the folder's cameras.json, and
    to pycolmap's cameras. Processor seconds are those of all threads, user and system; on a busy machine they say more
    than the seconds on the clock.

    \b
    Example: dune eval mapping photos/church/ photos/bridge/ --threads 2 -o table.json
    """
    from dune_cli.evaluation import mapping as benchmark
    from dune_cli.io.inputs import expand
    from dune_cli.optional import import_pycolmap
    from dune_cli.runtime import available_threads

    target = output.file(".json")
    given = [benchmark.read_folder(Path(folder), expand([folder])) for folder in folders]
    check_matchers([methods.matcher])
    import_pycolmap("dune eval mapping")
    run = Run(seed=methods.seed)
    threads = methods.threads or available_threads()
    words = ["--matcher", methods.matcher, "--pairs", methods.pairs]
    rows = []
    with run.stage("evaluate"):
        for one in console.progress(given, "sets", len(given), "set"):
            rows += benchmark.map_folder(one, words, threads, methods.seed)
    result = {
        "schema": "dune.eval-mapping/1",
        "threads": threads,
        "rows": [common.rounded(row) for row in rows],
        "provenance": run.provenance([], [], units="degrees; shares of the extent; seconds; bytes"),
    }
    output.finish(result, target, table(rows))


def table(rows: Sequence[MappedSet]) -> str:
    """Markdown, a row a set and method."""
    head = ["set", "method", "registered", "rotation °", "centre %", "from pycolmap °", "%", "points", "observations"]
    head += ["px", "seconds", "processor s", "GB"]
    lines = [
        [
            row.set_name,
            row.method,
            f"{row.registered}/{row.photos}",
            *map(_number, (row.rotation_deg, 100 * row.centre_share, row.apart_deg, 100 * row.apart_share)),
            str(row.points),
            str(row.observations),
            _number(row.reprojection_error_px, 2),
            f"{row.seconds:.1f}",
            f"{row.processor_seconds:.1f}",
            f"{row.memory_bytes / 1e9:.2f}",
        ]
        for row in rows
    ]
    return common.markdown(head, lines)


def _number(value: float, digits: int = 3) -> str:
    return "-" if value != value else f"{value:.{digits}f}"
