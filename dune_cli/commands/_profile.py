"""--profile of every command: what its stages take."""

from __future__ import annotations

import time
from functools import partial

import click

from dune_cli import console, provenance


def start(ctx: click.Context, wanted: bool) -> None:
    """At the beginning of a command: its stages are printed when it ends, if that is wanted."""
    provenance.runs.clear()
    if wanted:
        before = provenance.processor_seconds()
        ctx.call_on_close(partial(_print, time.perf_counter(), before))


def _print(started: float, start_up_s: float) -> None:
    from dune_cli import progress

    total_s, processor_s = time.perf_counter() - started, provenance.processor_seconds()
    if not progress.quiet:
        for line in table(provenance.runs, total_s, processor_s, start_up_s):
            console.note(line)


def table(runs: list[provenance.Run], total_s: float, processor_s: float, start_up_s: float) -> list[str]:
    """A row a stage: seconds on the clock, of all processors, and the share of the clock's. start_up_s: processor
    seconds before the command. What is in no stage is imports, checks, and what workers do outside of stages."""
    clock: dict[str, float] = {}
    processor: dict[str, float] = {}
    for run in runs:
        for name in run.seconds:
            clock[name] = clock.get(name, 0.0) + run.seconds[name]
            processor[name] = processor.get(name, 0.0) + run.processor_seconds.get(name, 0.0)
    rest = (total_s - sum(clock.values()), processor_s - start_up_s - sum(processor.values()))
    rows = [(name, clock[name], processor[name]) for name in clock]
    rows += [("outside of stages", *(max(0.0, value) for value in rest)), ("total", total_s, processor_s - start_up_s)]
    body = [(name, f"{a:.2f}", f"{b:.2f}", f"{a / max(total_s, 1e-9):.0%}") for name, a, b in rows]
    return console.aligned([("stage", "seconds", "processor s", "share"), *body], right=(1, 2, 3))
