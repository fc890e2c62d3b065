"""What a run will take, from a few timed steps: memory, disk, hours; and a refusal of what cannot fit."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from dune_cli.errors import JobFailed
from dune_cli.training.config import DistillConfig
from dune_cli.training.distill import distill

STEPS = 3


@dataclass(frozen=True)
class Estimate:
    """Hours for all steps, peak memory so far in bytes, disk for the cache and the checkpoints, and what there is."""

    hours: float
    images_per_second: float
    memory_bytes: int
    memory_available_bytes: int
    cache_bytes: int
    checkpoint_bytes: int
    disk_free_bytes: int


def preflight(config: DistillConfig, output: Path) -> Estimate:
    """Times three steps in a scratch folder (teachers on the fly, no checkpoint kept) and scales them up.

    Raises JobFailed when the disk or the memory cannot hold the run.
    """
    folder = output if output.exists() else next(p for p in output.resolve().parents if p.exists())
    with tempfile.TemporaryDirectory(prefix="dune-preflight-") as scratch:
        trial = dataclasses.replace(config, steps=STEPS, cache=None, log_every=1)
        started = time.monotonic()
        trained = distill(trial, Path(scratch))
        del started
        checkpoint = sum(file.stat().st_size for file in Path(scratch).rglob("*") if file.is_file())
    rate = trained.log[-1]["images_per_second"]
    cache = 0
    if config.cache:
        tokens = (config.size_px // trained.student.encoder.patch) ** 2
        channels = sum(
            width * (tokens if kind == "patch" else 1)
            for teacher in trained.teachers.values()
            for kind, width in teacher.widths.items()
        )
        cache = sum(trained.photos.sizes) * config.crops * (2 * channels + 3 * config.size_px**2)
    estimate = Estimate(
        hours=config.steps * config.batch_size / rate / 3600,
        images_per_second=rate,
        memory_bytes=_peak_memory(),
        memory_available_bytes=_available_memory(),
        cache_bytes=cache,
        checkpoint_bytes=3 * checkpoint,  # two are kept while a third is written
        disk_free_bytes=shutil.disk_usage(folder).free,
    )
    if estimate.cache_bytes + estimate.checkpoint_bytes > estimate.disk_free_bytes:
        raise JobFailed(
            f"the run needs {_gb(estimate.cache_bytes)} for the teacher cache and {_gb(estimate.checkpoint_bytes)} for "
            f"checkpoints, {folder} has {_gb(estimate.disk_free_bytes)} free; fewer --crops or another disk"
        )
    if estimate.memory_bytes > estimate.memory_available_bytes:
        raise JobFailed(
            f"three steps took {_gb(estimate.memory_bytes)} of memory, {_gb(estimate.memory_available_bytes)} are "
            "there; use a smaller --batch-size or more --accumulate"
        )
    return estimate


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _available_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
