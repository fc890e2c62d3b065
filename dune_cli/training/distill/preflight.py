"""An estimate of a run from a few timed steps: memory, disk and hours. Runs that cannot fit are refused."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from dune_cli import runtime
from dune_cli.errors import JobFailed, UserError
from dune_cli.io.outputs import scratch_folder
from dune_cli.teachers.teacher import PATCH
from dune_cli.training.common.loop import training_dtype
from dune_cli.training.common.run_folder import RunFolder
from dune_cli.training.distill.config import DistillConfig
from dune_cli.training.distill.distiller import DistilledStudent, distill
from dune_cli.training.distill.teacher_outputs import run_teachers

STEPS = 4
MEMORY_MARGIN = 1.1  # longer runs allocate more than the first steps


@dataclass(frozen=True)
class TrainingEstimate:
    """hours: in all, of which cache_hours fill the teacher cache. images_per_second: of the steps after that.
    memory_bytes: the peak of the steps. checkpoint_bytes: of three checkpoints. The disk sizes are free space."""

    hours: float
    cache_hours: float
    images_per_second: float
    memory_bytes: int
    memory_available_bytes: int
    cache_bytes: int
    cache_disk_free_bytes: int
    checkpoint_bytes: int
    disk_free_bytes: int


def preflight(config: DistillConfig, output: Path) -> TrainingEstimate:
    """Times four steps in a scratch folder, without a teacher cache, and extrapolates.

    Raises JobFailed when the disk or the memory cannot hold the run, and whatever the run itself would raise.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--preflight measures one process; run it without torchrun")
    RunFolder(output).check(config)
    parent = _existing_parent(output)
    with scratch_folder(parent, ".dune-preflight-") as scratch:
        trial = dataclasses.replace(config, steps=STEPS, cache=None, log_every=1, checkpoint_minutes=1e9)
        try:
            result = distill(trial, scratch)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise JobFailed(_too_large("a step does not fit into the memory")) from error
            raise
        log = RunFolder(scratch).read_log()
        checkpoint_bytes = sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file())
    estimate = _estimate(config, result, [entry["seconds"] for entry in log], checkpoint_bytes, parent)
    _check_fits(estimate, config, output)
    return estimate


def _estimate(
    config: DistillConfig, result: DistilledStudent, seconds: list[float], checkpoint_bytes: int, parent: Path
) -> TrainingEstimate:
    per_step = (seconds[-1] - seconds[0]) / (len(seconds) - 1)  # the first step is a warm-up
    cache_bytes, cache_seconds = 0, 0.0
    if config.cache:
        crops = sum(result.dataset.group_sizes) * config.crops
        tokens = (config.size_px // result.student.encoder.patch) ** 2
        channels = sum(
            width * (tokens if kind == PATCH else 1)
            for teacher in result.teachers.values()
            for kind, width in teacher.widths.items()
        )
        cache_bytes = crops * (2 * channels + 3 * config.size_px**2)
        teacher_seconds = _teacher_seconds(config, result)
        cache_seconds = crops * teacher_seconds
        per_step = max(per_step - teacher_seconds * config.batch_size, per_step / 100)
    memory, available = _memory(config)
    return TrainingEstimate(
        hours=(cache_seconds + config.steps * per_step) / 3600,
        cache_hours=cache_seconds / 3600,
        images_per_second=config.batch_size / max(per_step, 1e-9),
        memory_bytes=memory,
        memory_available_bytes=available,
        cache_bytes=cache_bytes,
        cache_disk_free_bytes=shutil.disk_usage(_existing_parent(Path(config.cache)) if config.cache else parent).free,
        checkpoint_bytes=3 * checkpoint_bytes,  # two are kept while a third is written
        disk_free_bytes=shutil.disk_usage(parent).free,
    )


def _teacher_seconds(config: DistillConfig, result: DistilledStudent) -> float:
    """Seconds that all teachers take for one image."""
    device = runtime.pick_device(config.device)
    images = torch.rand(config.batch_size // config.accumulate, 3, config.size_px, config.size_px, device=device)
    grid = (config.size_px // result.student.encoder.patch,) * 2
    started = time.perf_counter()
    outputs = run_teachers(result.teachers, images, grid, training_dtype(config.dtype, device))
    for types in outputs.values():
        for value in types.values():
            value.sum().item()  # waits for the device
    return (time.perf_counter() - started) / len(images)


def _check_fits(estimate: TrainingEstimate, config: DistillConfig, output: Path) -> None:
    same_disk = not config.cache or _device_of(Path(config.cache)) == _device_of(output)
    needed = estimate.checkpoint_bytes + (estimate.cache_bytes if same_disk else 0)
    if needed > estimate.disk_free_bytes:
        raise JobFailed(
            f"the run needs {_gb(estimate.cache_bytes)} for the teacher cache and {_gb(estimate.checkpoint_bytes)} for "
            f"checkpoints, the disk of {output} has {_gb(estimate.disk_free_bytes)} free; use fewer --crops or another "
            "disk"
        )
    if estimate.cache_bytes > estimate.cache_disk_free_bytes:
        raise JobFailed(
            f"the teacher cache needs {_gb(estimate.cache_bytes)}, the disk of {config.cache} has "
            f"{_gb(estimate.cache_disk_free_bytes)} free; use fewer --crops or another disk"
        )
    if estimate.memory_bytes * MEMORY_MARGIN > estimate.memory_available_bytes:
        raise JobFailed(
            _too_large(
                f"{STEPS} steps took {_gb(estimate.memory_bytes)} of memory, {_gb(estimate.memory_available_bytes)} "
                "are there"
            )
        )


def _too_large(what: str) -> str:
    return f"{what}; use a smaller --batch-size or --size, or a larger --accumulate"


def _existing_parent(path: Path) -> Path:
    """The path itself if it exists, else its nearest existing parent."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _device_of(path: Path) -> int:
    return _existing_parent(path).stat().st_dev


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _memory(config: DistillConfig) -> tuple[int, int]:
    """(peak memory of this process on the device, the device's memory), bytes."""
    device = runtime.pick_device(config.device)
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device), torch.cuda.get_device_properties(device).total_memory
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = peak if sys.platform == "darwin" else peak * 1024
    return peak, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
