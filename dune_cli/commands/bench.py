"""`dune bench`: speed as ratios measured in one run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dune_cli import console
from dune_cli.commands import options

if TYPE_CHECKING:
    from dune_cli.evaluation.matching_speed import MatchingSpeed
    from dune_cli.evaluation.speed import Speed

ARCHITECTURES = ("dune-vits", "dune-vitb", "mast3r-vitl")


@click.command()
@click.option(
    "--model",
    "architecture",
    type=click.Choice(ARCHITECTURES),
    default="dune-vitb",
    show_default=True,
    help="Architecture, with random weights: speed does not depend on them.",
)
@options.size
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Turns; the best of each counts.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the CPU.  [default: torch's own]")
@click.option(
    "--cpu-time", is_flag=True, help="Count processor seconds, not the wall's; with --threads 1 on a busy machine."
)
@click.option("--device", default="auto", show_default=True, help="Of the networks; matching runs on the CPU.")
@options.as_json
@options.common
def command(
    architecture: str,
    size: int | None,
    rounds: int,
    threads: int | None,
    cpu_time: bool,
    device: str,
    as_json: bool,
) -> None:
    """Speed of this machine, as ratios measured in one run.

    Encoder and two-view forward of one pair (4:3, --size px long side, default 518 or 512) in float32 and, where the
    processor is fast at it, with bfloat16 trunks, as a share of the float32 matrix-product rate measured in the same
    rounds (GFLOP/s: 10^9 operations a second); reciprocal matching against the full score matrix and KD-trees. Takes
    some minutes on a CPU.

    \b
    Example: dune bench
             dune bench --model mast3r-vitl --size 512 --json
    """
    from dataclasses import asdict

    from dune_cli.evaluation import matching_speed, speed
    from dune_cli.io.jsons import dumps
    from dune_cli.provenance import Run

    run = Run(seed=0)
    with speed.threads(threads):
        with run.stage("networks"):
            networks = speed.measure_networks(architecture, size, device, rounds, cpu_time, console.note)
        with run.stage("matching"):
            matching = matching_speed.measure_matching(rounds=rounds, cpu_time=cpu_time, report=console.note)
    goals = _goals(networks, matching)
    if as_json:
        document = {"schema": "dune.bench/1", **asdict(networks), "matching": asdict(matching), "goals": goals}
        click.echo(dumps(document | {"provenance": run.provenance([], [])}))
        return
    click.echo("\n".join(table(networks, matching)))


def table(networks: Speed, matching: MatchingSpeed) -> list[str]:
    """The lines that the command prints."""
    goals = _goal_lines(_goals(networks, matching))
    return [*_network_lines(networks), "", *_matching_lines(matching), "", *goals]


def _network_lines(speed: Speed) -> list[str]:
    height, width = speed.input_hw
    lines = [
        f"{speed.architecture}, random weights, one pair of {width}x{height} px, {speed.device}, "
        f"{speed.threads} threads, {speed.clock} time",
        "",
        "matrix products" + " " * 17 + "GFLOP/s",
    ]
    lines += [
        f"  {dtype:10}{shape:18}{rate:9.0f}" for dtype, rates in speed.peak.items() for shape, rate in rates.items()
    ]
    lines += [
        "",
        f"{'network':10}{'dtype':9}{'seconds':>9}{'GFLOP':>8}{'GFLOP/s':>9}{'of float32 peak':>17}  parts (s)",
    ]
    for row in speed.networks:
        parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row.parts.items())
        lines.append(
            f"{row.network:10}{row.dtype:9}{row.seconds:9.3f}{row.gflop:8.0f}{row.gflop_per_second:9.0f}"
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


def _goals(speed: Speed, matching: MatchingSpeed) -> list[dict[str, Any]]:
    from dune_cli.evaluation.speed import FAST_GOAL, FLOAT32_SHARE_GOAL, MATCHING_GOAL

    share = next(row.share for row in speed.networks if (row.network, row.dtype) == ("two-view", "float32"))
    found = [("float32 two-view, share of the matrix-product peak", FLOAT32_SHARE_GOAL, share)]
    found += [
        (f"{name}, {speed.fast_dtype} against float32", FAST_GOAL, gain) for name, gain in speed.fast_gain.items()
    ]
    found += [("matching against KD-trees", MATCHING_GOAL, matching.kd_tree_gain)]
    return [{"what": what, "goal": goal, "measured": value, "reached": value >= goal} for what, goal, value in found]


def _goal_lines(goals: list[dict[str, Any]]) -> list[str]:
    verdicts = {True: "reached", False: "NOT reached"}
    return [f"{g['what']}: {g['measured']:.2f}, goal {g['goal']:g}: {verdicts[g['reached']]}" for g in goals]
