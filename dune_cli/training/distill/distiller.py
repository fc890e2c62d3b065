"""The distiller's training loop. Recipe: DUNE (arXiv 2503.14405), docs/models/distillation.md."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dune_cli import console, runtime
from dune_cli.errors import UserError
from dune_cli.teachers.teacher import VALID, Teacher
from dune_cli.training.common.checkpoints import RunState
from dune_cli.training.common.dataset import Augmentation, PhotoDataset, open_dataset
from dune_cli.training.common.dist import (
    Dist,
    attention_kernel,
    dist_from_environment,
    sum_over_ranks,
    unwrap_model,
    wrap_model,
)
from dune_cli.training.common.loop import (
    TrainingLoop,
    set_learning_rate,
    step_seed,
    training_dtype,
    weight_decay_groups,
)
from dune_cli.training.common.run_folder import RunFolder, TensorBoard
from dune_cli.training.common.sampler import Sampler
from dune_cli.training.distill.batches import BatchLoader
from dune_cli.training.distill.config import DistillConfig
from dune_cli.training.distill.loss import check_owners
from dune_cli.training.distill.step import BatchTargets, forward_backward, scale_and_clip
from dune_cli.training.distill.students import Student, freeze_unused, load_into, new_encoder
from dune_cli.training.distill.teacher_norm import fit_phi_s, new_teacher_norms, norm_momentum
from dune_cli.training.distill.teacher_outputs import (
    CacheKey,
    TeacherCache,
    TokenWidths,
    load_teachers,
    run_teachers,
    token_weights,
    weights_identity,
)

PHI_S_STEPS = 8  # batches that the PHI-S statistics are fitted to


@dataclass
class DistilledStudent:
    """The result of a run: the student, its teachers and their norms.

    seconds and images are those of this call; a resumed run had more. cache_bytes: None without a cache.
    """

    config: DistillConfig
    student: Student
    norms: nn.ModuleDict
    teachers: dict[str, Teacher]
    dataset: PhotoDataset
    seconds: float
    images: int
    is_main: bool
    cache_bytes: int | None
    cache_seconds: float


def distill(config: DistillConfig, output: Path) -> DistilledStudent:
    """Trains the student in `output`, or resumes its training.

    Raises UserError when `output` holds a run of other settings or inputs, JobFailed when a checkpoint cannot be
    written or the loss is not finite. After an interruption at any moment the same call resumes from the last
    checkpoint, with bit-identical results on the same machine and number of processes.
    """
    with dist_from_environment(runtime.pick_device(config.device)) as dist:
        return _distill(config, RunFolder(output), dist)


def _distill(config: DistillConfig, folder: RunFolder, dist: Dist) -> DistilledStudent:
    if config.batch_size % (dist.world_size * config.accumulate):
        raise UserError(
            f"--batch-size {config.batch_size} must be a multiple of the {dist.world_size} processes "
            f"times --accumulate {config.accumulate}"
        )
    folder.check(config)
    dtype = training_dtype(config.dtype, dist.device)
    board = TensorBoard(folder.path) if config.logger == "tensorboard" and dist.is_main else None
    # before the teachers, which take longer to load: refuses a wrong size
    encoder = new_encoder(config.student, config.size_px, config.seed, open_weights=config.init is None)
    grid = (config.size_px // encoder.patch,) * 2
    teachers = load_teachers(config.teachers, dist.device, dtype)
    if dist.is_main:
        for name, teacher in teachers.items():
            console.note(f"teacher {name}, licence of its weights: {teacher.source.licence}")
    dataset = open_dataset(config.data, list(teachers), config.held_out_fraction)
    check_owners(config.sharing, list(teachers), dataset.owners)
    owner_of_group = torch.tensor([list(teachers).index(owner) if owner else -1 for owner in dataset.owners])
    sampler = Sampler(dataset.group_sizes, config.batch_size, config.seed, dist.rank, dist.world_size)

    widths = {name: teacher.widths for name, teacher in teachers.items()}
    student = Student(encoder, widths, config.projector, config.seed)
    if config.init:
        load_into(student, config.init)
    freeze_unused(student.to(dist.device), config.size_px)
    norms = new_teacher_norms(widths, config.norm).to(dist.device).train()
    weights = {name: weights_identity(teacher) for name, teacher in teachers.items()}
    folder.begin(config, {"photos": dataset.hash, "teachers": weights}, dist.is_main)
    dist.barrier()
    dataset.broken.update(folder.read_broken())
    dataset.on_broken = folder.append_broken

    augmentation = Augmentation(photometric=config.photometric)
    teacher_batch = config.batch_size // dist.world_size // config.accumulate
    began = time.monotonic()
    cache = None
    if config.cache:
        cache = _filled_cache(config, teachers, dataset, grid, augmentation, dist, dtype, teacher_batch)
    cache_seconds = time.monotonic() - began
    loader = BatchLoader(dataset, sampler, config.size_px, augmentation, cache, config.workers)

    blocks = getattr(student.encoder, "blocks", ())
    model = wrap_model(student.train(), blocks, config.compile, config.fsdp, dist)
    fused = dist.device.type in ("cpu", "cuda")
    groups = weight_decay_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), eps=1e-15, fused=fused)
    loop = TrainingLoop("distill", folder, config, RunState(model, optimizer, {"norms": norms}), dist, board)

    if config.norm == "phi-s" and not loop.resumed:
        batches = loader.batches(0, PHI_S_STEPS)
        fit_phi_s(
            norms,
            (
                b.teacher_outputs or run_teachers(teachers, b.images.to(dist.device), grid, dtype, teacher_batch)
                for b in batches
            ),
        )

    for step, batch in zip(loop.steps(), loader.batches(loop.first_step, config.steps)):
        torch.manual_seed(step_seed(config.seed, step, dist.rank))  # for students with dropout
        set_learning_rate(
            optimizer,
            step,
            config.steps,
            config.peak_learning_rate,
            config.final_learning_rate,
            config.warmup_fraction,
        )
        momentum = norm_momentum(step, config.steps)
        images = batch.images.to(dist.device)
        outputs = batch.teacher_outputs or run_teachers(teachers, images, grid, dtype, teacher_batch)
        outputs = {name: {kind: value.to(dist.device) for kind, value in of.items()} for name, of in outputs.items()}
        tokens = {  # in the teachers' order, whatever the cache's: owners are indices into it
            name: {
                kind: norms[name][kind](outputs[name][kind], momentum, token_weights(outputs[name], kind))
                for kind in types
            }
            for name, types in widths.items()
        }
        valid = {name: outputs[name][VALID] for name in widths if VALID in outputs[name]}
        targets = BatchTargets(tokens, owner_of_group[batch.group].to(dist.device), valid)
        with attention_kernel(config.compile, dist):
            numbers, factor = forward_backward(model, images, targets, config, step, dist, dtype)
        scale_and_clip(model, factor)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loop.end_step(
            step,
            lambda rate, numbers=numbers: {
                **_sum_over_ranks(numbers),
                "images_per_second": round(config.batch_size * rate, 3),
            },
            lambda numbers=numbers: _progress_text(numbers, loop.rate * config.batch_size, dist),
        )
    return DistilledStudent(
        config=config,
        student=unwrap_model(model, lambda: new_student(config, widths), dist),
        norms=norms,
        teachers=teachers,
        dataset=dataset,
        seconds=loop.seconds,
        images=config.batch_size * (config.steps - loop.first_step),
        is_main=dist.is_main,
        cache_bytes=cache.bytes if cache else None,
        cache_seconds=cache_seconds,
    )


def new_student(config: DistillConfig, widths: TokenWidths) -> Student:
    """The student before its first step, without the weights of `--init`."""
    encoder = new_encoder(config.student, config.size_px, config.seed, open_weights=config.init is None)
    return Student(encoder, widths, config.projector, config.seed)


def _filled_cache(
    config: DistillConfig,
    teachers: dict[str, Teacher],
    dataset: PhotoDataset,
    grid: tuple[int, int],
    augmentation: Augmentation,
    dist: Dist,
    dtype: torch.dtype,
    teacher_batch: int,
) -> TeacherCache:
    key = CacheKey(
        teachers={name: weights_identity(t) or t.source.name for name, t in teachers.items()},
        size_px=config.size_px,
        grid=grid,
        crops=config.crops,
        seed=config.seed,
        photometric=config.photometric,
        photos=dataset.hash,
        dtype=str(dtype),
    )
    cache = TeacherCache(Path(str(config.cache)), key, dataset)
    missing = cache.missing_shards(teachers, dist)
    count = int(sum_over_ranks(torch.tensor(float(len(missing)), device=dist.device)))
    if count and dist.is_main:
        console.note(f"teacher cache {cache.folder}: {count} of {cache.shards} shards to compute")
    cache.fill(teachers, missing, augmentation, dist, config.workers, dtype, teacher_batch)
    dist.barrier()
    dataset.broken.update(cache.broken())
    return cache


def _sum_over_ranks(numbers: dict[str, torch.Tensor]) -> dict[str, float]:
    stacked = sum_over_ranks(torch.stack(list(numbers.values())))
    return dict(zip(numbers, stacked.tolist()))


def _progress_text(numbers: dict[str, torch.Tensor], images_per_second: float, dist: Dist) -> str:
    """The progress bar's text: loss and patch cosine losses of this process's images, and images a second."""
    words = [f"loss {float(numbers['loss']) * dist.world_size:.3f}", f"{images_per_second:.1f} images/s"]
    for name, value in numbers.items():
        if name.endswith("/patch/cosine"):
            words.append(f"{name.partition('/')[0]} {float(value) * dist.world_size:.3f}")
    return ", ".join(words)
