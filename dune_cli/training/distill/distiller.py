"""The distiller: reads top to bottom. Recipe of DUNE (arXiv 2503.14405); settings in `DistillConfig`."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dune_cli import console, runtime
from dune_cli.errors import JobFailed, UserError
from dune_cli.teachers.registry import load_teacher
from dune_cli.teachers.teacher import Teacher
from dune_cli.training.common import checkpoints, dist
from dune_cli.training.common.dataset import Augmentation, Photos, open_photos
from dune_cli.training.common.dist import Dist, dist_from_environment
from dune_cli.training.common.loggers import TensorBoard
from dune_cli.training.common.run_folder import RunFolder
from dune_cli.training.common.schedule import Sampler, learning_rate, norm_momentum
from dune_cli.training.distill.batches import Loader
from dune_cli.training.distill.config import DistillConfig
from dune_cli.training.distill.loss import check_owners
from dune_cli.training.distill.step import (
    fit_phi_s,
    forward_backward,
    run_teachers,
    scale_and_clip,
    seed_of,
    teacher_norms,
)
from dune_cli.training.distill.students import Student, freeze_unused, load_into, new_student, weight_groups
from dune_cli.training.distill.teacher_cache import CacheKey, TeacherCache
from dune_cli.training.distill.teacher_norm import sum_over_ranks

PHI_S_STEPS = 8  # batches that the PHI-S statistics are taken from


@dataclass
class Trained:
    """What a run leaves: the student, the teachers' statistics, and the run's own numbers.

    seconds and images are of this call; a run that was interrupted had more. cache_bytes: None without a cache.
    """

    config: DistillConfig
    student: Student
    norms: nn.ModuleDict
    teachers: dict[str, Teacher]
    photos: Photos
    seconds: float
    images: int
    is_first: bool
    cache_bytes: int | None
    cache_seconds: float


def distill(config: DistillConfig, output: Path) -> Trained:
    """Trains, or goes on training, the student in `output`.

    Raises UserError when `output` holds a run of other settings or inputs, JobFailed when a checkpoint cannot be
    written or the loss is no longer finite. Killed at any moment, the same call goes on from the last checkpoint, bit
    for bit on the same machine and number of ranks.
    """
    with dist_from_environment(runtime.pick_device(config.device)) as here:
        return _distill(config, RunFolder(output), here)


def _distill(config: DistillConfig, folder: RunFolder, here: Dist) -> Trained:
    if config.batch_size % (here.count * config.accumulate):
        raise UserError(
            f"--batch-size {config.batch_size} must be a multiple of the {here.count} processes "
            f"times --accumulate {config.accumulate}"
        )
    folder.check(config)
    amp = training_dtype(config.dtype, here.device)
    board = TensorBoard(folder.path) if config.logger == "tensorboard" and here.is_first else None
    # refuses a wrong size before teachers load
    encoder = new_student(config.student, config.size_px, config.seed, open_weights=config.init is None)
    grid = (config.size_px // encoder.patch,) * 2
    teachers = load_teachers(config, here.device, amp)
    if here.is_first:
        for name, teacher in teachers.items():
            console.note(f"teacher {name}, licence of its weights: {teacher.source.licence}")
    photos = open_photos(config.data, list(teachers), config.held_out_fraction)
    check_owners(config.sharing, list(teachers), photos.owners)
    owner_of_group = torch.tensor([list(teachers).index(owner) if owner else -1 for owner in photos.owners])
    sampler = Sampler(photos.sizes, config.batch_size, config.seed, here.rank, here.count)

    widths = {name: teacher.widths for name, teacher in teachers.items()}
    student = Student(encoder, widths, config.projector, config.seed)
    if config.init:
        load_into(student, config.init)
    freeze_unused(student.to(here.device), config.size_px)
    norms = teacher_norms(widths, config.norm).to(here.device).train()
    weights = {name: teacher.source.sha256 for name, teacher in teachers.items()}
    folder.begin(config, photos.hash, weights, here.is_first)
    here.wait()
    photos.broken.update(folder.read_broken())
    photos.on_broken = folder.append_broken

    settings = Augmentation(photometric=config.photometric)
    began = time.monotonic()
    cache = _cache(config, teachers, photos, grid, settings, here, amp) if config.cache else None
    cache_seconds = time.monotonic() - began
    loader = Loader(photos, sampler, config.size_px, settings, cache, config.workers)

    model = dist.wrap(student.train(), config.compile, config.fsdp, here)
    fused = here.device.type in ("cpu", "cuda")
    groups = weight_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), eps=1e-15, fused=fused)
    run = checkpoints.RunState(model, optimizer, norms)
    newest = checkpoints.latest(folder.checkpoints)
    first = run.restore(newest, here) if newest else 0
    if newest and here.is_first:
        console.note(f"going on from {newest.name}, {config.steps - first} steps to go")

    at_once = config.batch_size // here.count // config.accumulate
    if config.norm == "phi-s" and not newest:
        batches = loader.batches(0, PHI_S_STEPS)
        fit_phi_s(
            norms, (b.tokens or run_teachers(teachers, b.images.to(here.device), grid, amp, at_once) for b in batches)
        )

    before = max((e["seconds"] for e in folder.read_log() if e["step"] <= first), default=0.0)
    started = last_saved = time.monotonic()
    bar = _Bar(first, config.steps, config.batch_size, here)
    for step, batch in zip(range(first, config.steps), loader.batches(first, config.steps)):
        torch.manual_seed(seed_of(config.seed, step, here.rank))  # for students with dropout
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step, config.steps, config.peak_learning_rate, config.final_learning_rate, config.warmup_fraction
            )
        momentum = norm_momentum(step, config.steps)
        images = batch.images.to(here.device)
        raw = batch.tokens or run_teachers(teachers, images, grid, amp, at_once)
        targets = {  # in the teachers' order, whatever the cache's: owners are indices into it
            name: {kind: norms[name][kind](raw[name][kind].to(here.device), momentum) for kind in kinds}
            for name, kinds in widths.items()
        }
        owner = owner_of_group[batch.group].to(here.device)
        with dist.attention_kernel(config.compile, here):
            numbers, factor = forward_backward(model, images, targets, owner, config, step, here, amp)
        scale_and_clip(model, factor)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        done = step + 1
        now = time.monotonic()
        is_last = done == config.steps
        saves = here.any(is_last or now - last_saved >= 60 * config.checkpoint_minutes)
        if saves or done % config.log_every == 0:
            entry = {"step": done, "lr": optimizer.param_groups[0]["lr"], **_summed(numbers)}
            if not all(math.isfinite(value) for value in entry.values()):
                raise JobFailed(f"the loss is not finite at step {done}; try a lower --lr, or --dtype float32")
            entry["images_per_second"] = round(config.batch_size * (done - first) / (now - started), 3)
            entry["seconds"] = round(before + now - started, 3)
            if here.is_first:
                folder.append_log(entry)
            if board is not None:
                board.add(entry)
        if saves:
            run.save(folder.checkpoints, done, here)
            last_saved = time.monotonic()
        bar.update(numbers)
    bar.close()
    return Trained(
        config=config,
        student=dist.whole(model, lambda: fresh_student(config, widths), here),
        norms=norms,
        teachers=teachers,
        photos=photos,
        seconds=time.monotonic() - started,
        images=config.batch_size * (config.steps - first),
        is_first=here.is_first,
        cache_bytes=cache.bytes if cache else None,
        cache_seconds=cache_seconds,
    )


def fresh_student(config: DistillConfig, widths: dict[str, dict[str, int]]) -> Student:
    """The student before its first step; `--init` apart."""
    encoder = new_student(config.student, config.size_px, config.seed, open_weights=config.init is None)
    return Student(encoder, widths, config.projector, config.seed)


def training_dtype(name: str, device: torch.device) -> torch.dtype:
    """The autocast type of `--dtype`: float32 or bfloat16. Gradients in float16 would need a loss scale: UserError."""
    amp = runtime.pick_dtype(name, device)
    if amp == torch.float16 and name == "auto":
        return torch.float32
    if amp == torch.float16:
        raise UserError("--dtype float16 is too narrow for training; allowed: auto, float32, bfloat16")
    return amp


def load_teachers(config: DistillConfig, device: torch.device, amp: torch.dtype) -> dict[str, Teacher]:
    """The frozen teachers by name. UserError for two of one name."""
    teachers: dict[str, Teacher] = {}
    for text in config.teachers:
        teacher = load_teacher(text, device, amp).to(device)
        if teacher.name in teachers:
            raise UserError(f"--teachers: {teacher.name} is there twice; name each teacher once")
        teachers[teacher.name] = teacher
    return teachers


def _cache(
    config: DistillConfig,
    teachers: dict[str, Teacher],
    photos: Photos,
    grid: tuple[int, int],
    settings: Augmentation,
    here: Dist,
    amp: torch.dtype,
) -> TeacherCache:
    key = CacheKey(
        teachers={name: teacher.source.sha256 or teacher.source.name for name, teacher in teachers.items()},
        size_px=config.size_px,
        grid=grid,
        crops=config.crops,
        seed=config.seed,
        photometric=config.photometric,
        photos=photos.hash,
        dtype=str(amp),
    )
    cache = TeacherCache(Path(str(config.cache)), key, photos)
    unfilled = cache.unfilled({name: teacher.widths for name, teacher in teachers.items()}, here)
    count = int(sum_over_ranks(torch.tensor(float(len(unfilled)), device=here.device)))
    if count and here.is_first:
        console.note(f"teacher cache {cache.folder}: {count} of {cache.shards} shards to compute")
    at_once = config.batch_size // here.count // config.accumulate
    cache.fill(teachers, unfilled, settings, here, config.workers, amp, at_once)
    here.wait()
    photos.broken.update(cache.broken())
    return cache


def _summed(numbers: dict[str, torch.Tensor]) -> dict[str, float]:
    stacked = sum_over_ranks(torch.stack(list(numbers.values())))
    return dict(zip(numbers, stacked.tolist()))


class _Bar:
    """Progress with loss, images/s and time to go, told by the first rank."""

    def __init__(self, first: int, last: int, batch: int, here: Dist) -> None:
        self._bar = console.bar(last - first, "distill", "step") if here.is_first else None
        self._batch, self._ranks = batch, here.count

    def update(self, numbers: dict[str, torch.Tensor]) -> None:
        """One more step; the losses shown are this rank's."""
        if self._bar is not None:
            self._bar.update(1, lambda: self._shown(numbers))

    def _shown(self, numbers: dict[str, torch.Tensor]) -> str:
        assert self._bar is not None
        words = [f"loss {float(numbers['loss']) * self._ranks:.3f}", f"{self._bar.rate * self._batch:.1f} images/s"]
        for name, value in numbers.items():
            if name.endswith("/patch/cosine"):
                words.append(f"{name.partition('/')[0]} {float(value) * self._ranks:.3f}")
        return ", ".join(words)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
