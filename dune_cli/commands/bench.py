"""`dune bench`: speed as ratios measured in one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dune_cli import console, runtime
from dune_cli.commands import options
from dune_cli.commands.choices import NearChoice
from dune_cli.commands.options import ComputeOptions, JsonOptions, option
from dune_cli.errors import UserError
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.evaluation.distill_speed import DistillSpeed
    from dune_cli.evaluation.matching_speed import MatchingSpeed
    from dune_cli.evaluation.network_speed import PairSpeed, TaskSpeed
    from dune_cli.evaluation.search_speed import SearchSpeed
    from dune_cli.evaluation.speed import NetworkSpeed

NEEDS = ("numpy", "torch", "scipy", "tqdm")
MODELS = {  # of each part, the default first
    "pair": ("dune-vitb", "dune-vits", "mast3r-vitl"),
    "depth": ("dinov2-vits14-nyu-dpt", "dinov2-vitb14-nyu-dpt", "dinov2-vitl14-nyu-dpt", "mast3r-vitl"),
    "distill": ("dune-mini", "dune-vits14", "dune-vitb14"),
    "human": ("multihmr-672-l-anny", "multihmr-672-s", "multihmr-672-b", "multihmr-672-l", "multihmr-896-l"),
}
PARTS = (*MODELS, "search")


@options.group("Advanced")
class BenchOptions:
    architecture: str | None = option(
        "--architecture NAME",
        "Architecture, with random weights, on which speed does not depend. "
        + " ".join(f"{part}: {', '.join(names)}." for part, names in MODELS.items()),
        heading="Model",
        aliases=["--model"],
        default_text="the first",
    )
    size: int | None = options.size_px()
    rounds: int = option("--rounds N", "Number of rounds, of which the fastest counts.", options.COUNT, 3)
    threads: int | None = option("--threads N", "Number of CPU threads.", options.COUNT, default_text="torch's own")
    cpu_time: bool = option(
        "--cpu-time", "Measure processor time instead of wall time. For busy machines, with --threads 1."
    )
    device: str = options.changed(ComputeOptions, "device")


@options.verb()
def command(
    *,
    part: str = options.argument(
        "[pair|depth|human|distill|search]",
        "What to measure.  [default: pair]",
        type=NearChoice(PARTS),
        default="pair",
    ),
    given: BenchOptions,
    output: JsonOptions,
) -> None:
    """Measure the speed of this machine, as ratios within one run.

    Networks run in float32 and, where the processor is fast at it, with bfloat16 transformers. Their rates are given as
    fractions of the float32 matrix-product rate measured in the same rounds, in GFLOP/s (10^9 operations per second).
    This takes some minutes on a CPU.

    pair: encoder and two-view forward of one 4:3 pair (default --size 518 or 512), and reciprocal matching on the CPU
    against the full score matrix and KD-trees. depth: encoder and whole network on one 4:3 image (default 640 or 512
    px). distill: a training step with and without the teacher cache, and the loading of photos (squares of --size).
    human: one square of the model's own size, with four people; for Anny models also with bodies. search: dune search
    for one photo and for 32 in 100,000 made-up vectors of the width of dune-mini, compared with sorting in float64.

    \b
    Example: dune bench
             dune bench --architecture mast3r-vitl --size 512 --json
             dune bench human --architecture multihmr-672-s --rounds 1
             dune bench search
    """
    from dataclasses import asdict

    if part == "search":
        if given.architecture is not None or given.size is not None or given.device not in ("auto", "cpu"):
            raise UserError("a search has no network; leave --architecture, --size and --device out")
        if given.threads is not None:
            raise UserError("the threads of a search are NumPy's; leave --threads out and set OPENBLAS_NUM_THREADS")
        _search(given, output)
        return
    name = given.architecture or MODELS[part][0]
    if name not in MODELS[part]:
        raise UserError(f"{name!r} is no model of 'dune bench {part}'; allowed: {', '.join(MODELS[part])}")
    if part == "human" and given.size is not None:
        raise UserError("a human model takes squares of its own size; leave --size out")

    from dune_cli.evaluation import distill_speed, matching_speed, network_speed

    run = Run(seed=0)
    size, device, rounds, cpu_time = given.size, given.device, given.rounds, given.cpu_time
    with runtime.use_torch_threads(given.threads), run.stage("networks"):
        if part == "pair":
            measured: Any = network_speed.measure_pair(name, size, device, rounds, cpu_time, console.note)
        elif part == "distill":
            measured = distill_speed.measure_distill(
                name, size, device=device, rounds=rounds, cpu_time=cpu_time, report=console.note
            )
        else:
            measured = network_speed.measure_task(name, size, device, rounds, cpu_time, console.note)
    document: dict[str, Any] = {"schema": "dune.bench/1"}
    if part == "pair":
        with runtime.use_torch_threads(given.threads), run.stage("matching"):
            matching = matching_speed.measure_matching(rounds=rounds, cpu_time=cpu_time, report=console.note)
        document |= asdict(measured) | {"matching": asdict(matching), "goals": _goals(measured, matching)}
        lines = table(measured, matching)
    else:
        document |= {"part": part, **asdict(measured)}
        lines = distill_table(measured) if part == "distill" else task_table(measured)
    output.print_json([document | {"provenance": run.provenance([], [])}])
    if not output.as_json:
        console.document("\n".join(lines))


def _search(given: BenchOptions, output: JsonOptions) -> None:
    from dataclasses import asdict

    from dune_cli.evaluation import search_speed

    run = Run(seed=0)
    with run.stage("search"):
        measured = search_speed.measure_search(rounds=given.rounds, cpu_time=given.cpu_time, report=console.note)
    goal = search_speed.GOAL_SECONDS
    seconds = measured.engines[0].seconds
    goals = [
        {"what": "seconds of a search for one photo", "goal": goal, "measured": seconds, "reached": seconds <= goal}
    ]
    document = {"schema": "dune.bench/1", "part": "search", **asdict(measured), "goals": goals}
    output.print_json([document | {"provenance": run.provenance([], [])}])
    if not output.as_json:
        console.document("\n".join([*search_table(measured), "", *_goal_lines(goals)]))


def search_table(measured: SearchSpeed) -> list[str]:
    """The lines that `dune bench search` prints."""
    lines = [
        f"the {measured.top} most similar of {measured.count} vectors of width {measured.dimension}, "
        f"{measured.threads} threads, {measured.clock} time",
        "",
        f"{'engine':10}{'queries':>8}{'seconds':>10}  hits",
    ]
    return lines + [
        f"{row.engine:10}{row.queries:8}{row.seconds:10.4f}  {'those' if row.identical else 'NOT those'} of float64"
        for row in measured.engines
    ]


def table(networks: PairSpeed, matching: MatchingSpeed) -> list[str]:
    """The lines that the command prints."""
    goals = _goal_lines(_goals(networks, matching))
    return [*_network_lines(networks), "", *_matching_lines(matching), "", *goals]


def _network_lines(speed: PairSpeed) -> list[str]:
    height, width = speed.input_hw
    lines = [
        f"{speed.architecture}, random weights, one pair of {width}x{height} px, {speed.device}, "
        f"{speed.threads} threads, {speed.clock} time",
    ]
    return lines + _rate_lines(speed.peak, speed.networks)


def task_table(measured: TaskSpeed) -> list[str]:
    """The lines that `dune bench depth` and `dune bench human` print."""
    height, width = measured.input_hw
    people = "" if measured.people is None else f" with {measured.people} people"
    head = (
        f"{measured.model}, random weights, one image of {width}x{height} px{people}, {measured.device}, "
        f"{measured.threads} threads, {measured.clock} time"
    )
    gains = [f"{part}, {measured.fast_dtype} against float32: {gain:.2f}x" for part, gain in measured.fast_gain.items()]
    return [head, *_rate_lines(measured.peak, measured.networks), "", *gains]


def distill_table(measured: DistillSpeed) -> list[str]:
    """The lines that `dune bench distill` prints."""
    lines = [
        f"{measured.student} from {', '.join(measured.teachers)}, "
        f"steps of {measured.batch_size} images of {measured.size_px} px, "
        f"{measured.gflop:.0f} GFLOP each, {measured.device}, {measured.threads} threads, {measured.clock} time",
        "",
        *(f"matrix products, {dtype}: {rate:.0f} GFLOP/s" for dtype, rate in measured.peak.items()),
        "",
        f"{'step, answers given':24}{'seconds':>9}{'images/s':>10}{'GFLOP/s':>9}{'of its peak':>13}",
    ]
    lines += [
        f"{row.way:24}{row.seconds:9.3f}{row.images_per_second:10.1f}{row.gflop_per_second:9.0f}{row.share:13.0%}"
        for row in measured.steps
    ]
    return [
        *lines,
        "",
        f"teachers alone: {measured.teacher_images_per_second:.1f} images/s",
        f"loading alone, {measured.workers} workers: photos {measured.loading['photos']:.0f} images/s, "
        f"cached rows {measured.loading['cache']:.0f} images/s",
        f"whole loop: {measured.loop['on the fly']:.1f} images/s, with the teacher cache {measured.loop['cached']:.1f} "
        f"({measured.loop['cached'] / measured.loop['on the fly']:.2f}x)",
    ]


def _rate_lines(peak: dict[str, dict[str, float]], networks: Sequence[NetworkSpeed]) -> list[str]:
    lines = ["", "matrix products" + " " * 17 + "GFLOP/s"]
    lines += [f"  {dtype:10}{shape:18}{rate:9.0f}" for dtype, rates in peak.items() for shape, rate in rates.items()]
    wide = max(10, *(len(row.network) + 1 for row in networks))
    lines += [
        "",
        f"{'network':{wide}}{'dtype':9}{'seconds':>9}{'GFLOP':>8}{'GFLOP/s':>9}{'of float32 peak':>17}  parts (s)",
    ]
    for row in networks:
        parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row.parts.items())
        lines.append(
            f"{row.network:{wide}}{row.dtype:9}{row.seconds:9.3f}{row.gflop:8.0f}{row.gflop_per_second:9.0f}"
            f"{row.share:16.0%}   {parts}"
        )
    return lines


def _matching_lines(matching: MatchingSpeed) -> list[str]:
    height, width = matching.grid_hw
    return [
        f"all mutual nearest neighbours of two {width}x{height}x{matching.channels} maps: {matching.matches} matches, "
        f"{'identical' if matching.identical else 'DIFFERENT'} in all three ways",
        f"  own {matching.seconds:.3f} s",
        f"  full matrix {matching.full_matrix_seconds:.3f} s ({matching.full_matrix_gain:.2f}x)",
        f"  KD-trees {matching.kd_tree_seconds:.3f} s ({matching.kd_tree_gain:.1f}x)",
    ]


def _goals(speed: PairSpeed, matching: MatchingSpeed) -> list[dict[str, Any]]:
    from dune_cli.evaluation.network_speed import FAST_GOAL, FLOAT32_SHARE_GOAL, MATCHING_GOAL

    share = next(row.share for row in speed.networks if (row.network, row.dtype) == ("two-view", "float32"))
    measured = [("float32 two-view, share of the matrix-product peak", FLOAT32_SHARE_GOAL, share)]
    measured += [
        (f"{name}, {speed.fast_dtype} against float32", FAST_GOAL, gain) for name, gain in speed.fast_gain.items()
    ]
    measured += [("matching against KD-trees", MATCHING_GOAL, matching.kd_tree_gain)]
    return [{"what": what, "goal": goal, "measured": value, "reached": value >= goal} for what, goal, value in measured]


def _goal_lines(goals: list[dict[str, Any]]) -> list[str]:
    verdicts = {True: "reached", False: "NOT reached"}
    return [f"{g['what']}: {g['measured']:.2f}, goal {g['goal']:g}: {verdicts[g['reached']]}" for g in goals]
