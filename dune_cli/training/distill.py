"""The distiller: reads top to bottom. Recipe of DUNE (arXiv 2503.14405); settings in `DistillConfig`."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dune_cli import console, runtime
from dune_cli.errors import JobFailed, UserError
from dune_cli.io.jsons import read_json, write_json
from dune_cli.teachers.base import Teacher
from dune_cli.teachers.load import load_teacher
from dune_cli.training import state
from dune_cli.training.augment import Augmentation
from dune_cli.training.batches import Loader
from dune_cli.training.cache import CacheKey, TeacherCache, names_hash
from dune_cli.training.config import DistillConfig, as_json, differences
from dune_cli.training.photos import Photos, open_photos
from dune_cli.training.ranks import Ranks, ranks
from dune_cli.training.sampler import Sampler
from dune_cli.training.schedule import learning_rate, norm_momentum
from dune_cli.training.step import clip_per_parameter, fit_phi_s, forward_backward, teach, teacher_norms
from dune_cli.training.students import Student, build_encoder, weight_groups
from dune_cli.training.students_init import load_into
from dune_cli.training.teacher_norm import sum_over_ranks

LOG = "log.jsonl"
CONFIG = "config.json"
PHI_S_STEPS = 8  # batches that the PHI-S statistics are taken from


@dataclass
class Trained:
    """What a run leaves: the student, the teachers' statistics, and the run's own numbers."""

    config: DistillConfig
    student: Student
    norms: nn.ModuleDict
    teachers: dict[str, Teacher]
    photos: Photos
    steps_done: int
    seconds: float
    images: int
    is_first: bool = True
    log: list[dict[str, Any]] = field(default_factory=list)


def distill(config: DistillConfig, output: Path) -> Trained:
    """Trains, or goes on training, the student in `output`.

    Raises UserError when `output` holds a run of another configuration, JobFailed when a checkpoint cannot be written
    or the loss is no longer finite. Killed at any moment, the same call goes on from the last checkpoint, bit for bit
    on the same machine and number of ranks.
    """
    device = runtime.pick_device(config.device)
    with ranks(device) as here:
        return _distill(config, output, here)


def _distill(config: DistillConfig, output: Path, here: Ranks) -> Trained:
    if config.batch_size % (here.count * config.accumulate):
        raise UserError(
            f"--batch-size {config.batch_size} must be a multiple of the {here.count} processes "
            f"times --accumulate {config.accumulate}"
        )
    _check_same_run(config, output, here)
    amp = runtime.pick_dtype(config.dtype, here.device)
    teachers = {t.name: t.to(here.device) for t in (load_teacher(text, here.device, amp) for text in config.teachers)}
    photos = open_photos(config.data, list(teachers), config.held_out_fraction)

    generator = torch.Generator().manual_seed(config.seed)
    encoder = build_encoder(config.student, config.size_px, generator)
    if config.init:
        load_into(encoder, config.init)
    if config.size_px % encoder.patch:
        raise UserError(f"--size {config.size_px} is no multiple of the student's patch, {encoder.patch} px")
    grid = (config.size_px // encoder.patch,) * 2
    widths = {name: teacher.widths for name, teacher in teachers.items()}
    student = Student(encoder, widths, config.projector, generator).to(here.device).train()
    norms = teacher_norms(widths, config.norm).to(here.device).train()

    settings = Augmentation(photometric=config.photometric)
    cache = _cache(config, teachers, photos, grid, settings, here) if config.cache else None
    sampler = Sampler(photos.sizes, config.batch_size // here.count, config.seed, here.rank, here.count)
    loader = Loader(photos, sampler, config.size_px, settings, cache, config.workers)

    model = _wrapped(student, config, here)
    fused = here.device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(
        weight_groups(model, config.weight_decay), lr=0.0, betas=(0.9, 0.99), eps=1e-15, fused=fused
    )
    run = state.RunState(model, optimizer, norms)
    checkpoints = output / "checkpoints"
    newest = state.latest(checkpoints)
    first = run.restore(newest, here) if newest else 0
    if newest and here.is_first:
        console.note(f"going on from {newest.name}, {config.steps - first} steps to go")

    if config.norm == "phi-s" and not newest:
        first_batches = loader.batches(0, PHI_S_STEPS)
        fit_phi_s(norms, (b.tokens or teach(teachers, b.images.to(here.device), grid, amp) for b in first_batches))

    owners = torch.tensor([list(teachers).index(owner) if owner else -1 for owner in photos.owners])
    started = last_saved = time.monotonic()
    log: list[dict[str, Any]] = []
    bar = _Bar(first, config.steps, config.batch_size, here)
    for step, batch in zip(range(first, config.steps), loader.batches(first, config.steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step, config.steps, config.peak_learning_rate, config.final_learning_rate, config.warmup_fraction
            )
        momentum = norm_momentum(step, config.steps)
        raw = batch.tokens or teach(teachers, batch.images.to(here.device), grid, amp)
        targets = {
            name: {kind: norms[name][kind](value.to(here.device), momentum) for kind, value in kinds.items()}
            for name, kinds in raw.items()
        }
        numbers = forward_backward(model, batch, targets, owners, config, step, here, amp)
        clip_per_parameter(model)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            entry = {"step": done, "lr": optimizer.param_groups[0]["lr"], **_averaged(numbers, here)}
            entry["images_per_second"] = round(config.batch_size * (done - first) / (time.monotonic() - started), 3)
            log.append(entry)
            if here.is_first:
                _append(output / LOG, entry)
            if not all(map(_finite, entry.values())):
                raise JobFailed(f"the loss is not finite at step {done}; try a lower --lr, or --dtype float32")
        bar.update(numbers)
        if time.monotonic() - last_saved > 60 * config.checkpoint_minutes or done == config.steps:
            run.save(checkpoints, done, here)
            last_saved = time.monotonic()
    bar.close()
    seconds = time.monotonic() - started
    return Trained(
        config=config,
        student=student,
        norms=norms,
        teachers=teachers,
        photos=photos,
        steps_done=config.steps,
        seconds=seconds,
        images=config.batch_size * (config.steps - first),
        is_first=here.is_first,
        log=log,
    )


def _wrapped(student: Student, config: DistillConfig, here: Ranks) -> nn.Module:
    model: nn.Module = student
    if config.compile:
        student.compile()
    if here.count > 1 and config.fsdp:
        from torch.distributed.fsdp import fully_shard

        for block in getattr(student.encoder, "blocks", ()):
            fully_shard(block)
        return fully_shard(student)
    if here.count > 1:
        ids = [here.device.index] if here.device.type == "cuda" else None
        model = DistributedDataParallel(student, device_ids=ids)
    return model


def _cache(
    config: DistillConfig,
    teachers: dict[str, Teacher],
    photos: Photos,
    grid: tuple[int, int],
    settings: Augmentation,
    here: Ranks,
) -> TeacherCache:
    key = CacheKey(
        {name: teacher.source.sha256 or teacher.source.name for name, teacher in teachers.items()},
        config.size_px,
        grid,
        config.crops,
        config.seed,
        config.photometric,
        names_hash(photos),
    )
    cache = TeacherCache(Path(str(config.cache)), key, photos)
    missing = cache.missing()
    if missing and here.is_first:
        console.note(f"teacher cache {cache.folder}: {len(missing)} of {cache.shards} shards to compute")
    cache.fill(teachers, settings, here.device, config.workers, missing[here.rank :: here.count])
    here.wait()
    return cache


def _check_same_run(config: DistillConfig, output: Path, here: Ranks) -> None:
    path = output / CONFIG
    if path.exists():
        changed = differences(read_json(path), config)
        if changed:
            raise UserError(
                f"{output} holds a run with other settings ({'; '.join(changed)}); use them again, or another -o"
            )
    elif here.is_first:
        output.mkdir(parents=True, exist_ok=True)
        write_json(path, as_json(config))
    here.wait()


def _averaged(numbers: dict[str, torch.Tensor], here: Ranks) -> dict[str, float]:
    stacked = sum_over_ranks(torch.stack([torch.as_tensor(v, dtype=torch.float32) for v in numbers.values()]))
    return dict(zip(numbers, (stacked / here.count).tolist()))


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or (value == value and abs(value) != float("inf"))


def _append(path: Path, entry: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


class _Bar:
    """Progress with loss, images/s and time to go; nothing where stderr is no terminal."""

    def __init__(self, first: int, last: int, batch: int, here: Ranks) -> None:
        self._bar = console.bar(last - first, "distill", "step") if here.is_first else None
        self._batch = batch

    def update(self, numbers: dict[str, torch.Tensor]) -> None:
        if self._bar is None:
            return
        self._bar.update(1)
        rate = self._bar.format_dict["rate"] or 0
        shown = {"loss": f"{float(numbers['loss']):.3f}", "images/s": f"{rate * self._batch:.1f}"}
        self._bar.set_postfix(shown, refresh=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
