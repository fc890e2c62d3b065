"""Speed of the distiller: a training step against this machine's matrix products, and the loop with and without cache.

The loop and its losses are the real ones; photos are synthetic. `dune-mini` learns from the open teachers' own weights,
DUNE's ViTs from three ViT-L with random weights, which are as fast as the published teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

from dune_cli.evaluation.speed import Call, SpeedBench, count_flop, mlp_shapes
from dune_cli.io.outputs import scratch_folder
from dune_cli.models.vit import VisionTransformer, VitConfig
from dune_cli.provenance import Source
from dune_cli.teachers.registry import load_teacher
from dune_cli.teachers.teacher import CLS, PATCH, VALID, Teacher, VitTeacher
from dune_cli.training.common.dataset import Augmentation, PhotoDataset, open_dataset
from dune_cli.training.common.dist import Dist, attention_kernel
from dune_cli.training.common.loop import weight_decay_groups
from dune_cli.training.common.sampler import Sampler
from dune_cli.training.distill.batches import BatchLoader
from dune_cli.training.distill.config import DistillConfig
from dune_cli.training.distill.step import BatchTargets, forward_backward, scale_and_clip
from dune_cli.training.distill.students import Student, freeze_unused, new_encoder
from dune_cli.training.distill.teacher_norm import new_teacher_norms
from dune_cli.training.distill.teacher_outputs import CacheKey, TeacherCache, TeacherOutputs, run_teachers

# student -> teachers, side of the crops, images a step
RECIPES = {
    "dune-mini": (("xfeat", "efficientnet-lite2"), 224, 32),
    "dune-vits14": (("dinov2", "mast3r", "multihmr"), 336, 8),
    "dune-vitb14": (("dinov2", "mast3r", "multihmr"), 336, 8),
}
PHOTO_PX = (640, 480)


@dataclass(frozen=True)
class StepSpeed:
    """A way to run the step on given teacher outputs. share: of the number type's matrix-product rate."""

    way: str
    seconds: float
    images_per_second: float
    gflop_per_second: float
    share: float


@dataclass(frozen=True)
class DistillSpeed:
    """One run; images a second, except gflop (of a step) and peak (GFLOP/s by number type).

    steps: in float32, in the fast type, and in that compiled. teachers: all, in the fast type. loading: of photos
    (decoding and augmentation) and of cached rows, by `workers` threads alone. loop: the whole loop in the fast type,
    with teachers "on the fly" and "cached".
    """

    student: str
    teachers: tuple[str, ...]
    device: str
    threads: int
    workers: int
    clock: str
    size_px: int
    batch_size: int
    gflop: float
    peak: dict[str, float]
    steps: tuple[StepSpeed, ...]
    teacher_images_per_second: float
    loading: dict[str, float]
    loop: dict[str, float]


def measure_distill(
    student: str = "dune-mini",
    size_px: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    rounds: int = 3,
    cpu_time: bool = False,
    workers: int = 2,
    report: Callable[[str], None] = lambda text: None,
) -> DistillSpeed:
    """Times the distiller of a student of `RECIPES`. WeightsMissing where an open teacher's file is not present."""
    names, default_size, default_batch = RECIPES[student]
    size, batch = size_px or default_size, batch_size or default_batch
    bench = SpeedBench(device, rounds, cpu_time, report)
    fast, fast_name = bench.fast, bench.fast_dtype
    dist = Dist(0, 1, bench.device)
    report(f"building {student} and its teachers {', '.join(names)}")
    encoder = new_encoder(student, size, 0, open_weights=False)
    grid = (size // encoder.patch,) * 2
    teachers = {name: _teacher(student, name, bench.device, fast) for name in names}
    config = DistillConfig(names, ("synthetic photos",), student=student, size_px=size, batch_size=batch)
    trained = Student(encoder, {name: teacher.widths for name, teacher in teachers.items()}, config.projector, 0)
    freeze_unused(trained.to(bench.device), size)

    with scratch_folder(prefix="dune-bench-") as scratch:
        dataset = _synthetic_photos(scratch, batch)
        augmentation = Augmentation(photometric=True)
        loader = BatchLoader(dataset, Sampler(dataset.group_sizes, batch, 0), size, augmentation, None, workers)
        key = CacheKey(dict.fromkeys(names, ""), size, grid, 1, 0, True, dataset.hash, str(fast))
        cache = TeacherCache(scratch / "cache", key, dataset)
        cache.fill(teachers, range(cache.shards), augmentation, dist, workers, fast, batch)
        cached = replace(loader, cache=cache)

        images = next(loader.batches(0, 1)).images.to(bench.device)
        outputs = run_teachers(teachers, images, grid, fast)
        loop = _Loop(trained, teachers, grid, config, dist)
        with sdpa_kernel(SDPBackend.MATH):
            gflop = count_flop(lambda: loop.step(images, outputs, torch.float32, False)) / 1e9
        ways = {name: (name, False) for name in bench.dtypes} | {f"{fast_name}, compiled": (fast_name, True)}
        calls: dict[str, Call] = {
            way: lambda dtype=dtype, compiled=compiled: loop.step(images, outputs, bench.dtypes[dtype], compiled)
            for way, (dtype, compiled) in ways.items()
        }
        calls["teachers"] = lambda: run_teachers(teachers, images, grid, fast)
        calls["load photos"] = lambda: sum(len(b.images) for b in loader.batches(0, rounds))
        calls["load cache"] = lambda: sum(len(b.images) for b in cached.batches(0, rounds))
        calls["on the fly"] = lambda: loop.run(loader, rounds, fast)
        calls["cached"] = lambda: loop.run(cached, rounds, fast)
        vit = trained.encoder.config
        best, rates = bench.measure(calls, mlp_shapes(batch * grid[0] * grid[1], vit.width, vit.hidden))

    peak = {name: max(rates[name].values()) for name in bench.dtypes}
    steps = []
    for way, (dtype, _) in ways.items():
        rate = gflop / best[way]
        steps.append(StepSpeed(way, best[way], batch / best[way], rate, rate / peak[dtype]))
    return DistillSpeed(
        student=student,
        teachers=names,
        device=str(bench.device),
        threads=torch.get_num_threads(),
        workers=workers,
        clock=bench.watch.clock,
        size_px=size,
        batch_size=batch,
        gflop=gflop,
        peak=peak,
        steps=tuple(steps),
        teacher_images_per_second=batch / best["teachers"],
        loading={what: batch * rounds / best[f"load {what}"] for what in ("photos", "cache")},
        loop={what: batch * rounds / best[what] for what in ("on the fly", "cached")},
    )


class _Loop:
    """The distiller's loop without checkpoints and log."""

    def __init__(
        self,
        student: Student,
        teachers: Mapping[str, Teacher],
        grid: tuple[int, int],
        config: DistillConfig,
        dist: Dist,
    ) -> None:
        self.student, self.teachers, self.grid, self.config, self.dist = student.train(), teachers, grid, config, dist
        widths = {name: teacher.widths for name, teacher in teachers.items()}
        self.norms = new_teacher_norms(widths, config.norm).to(dist.device).train()
        self.optimizer = torch.optim.AdamW(weight_decay_groups(student, config.weight_decay), lr=1e-6, fused=True)
        self.compiled = torch.compile(student)
        self.owner = torch.full((config.batch_size,), -1, device=dist.device)

    def step(self, images: torch.Tensor, outputs: TeacherOutputs, dtype: torch.dtype, compiled: bool) -> None:
        tokens = {n: {k: self.norms[n][k](outputs[n][k], 0.0) for k in norm} for n, norm in self.norms.items()}
        valid = {n: types[VALID] for n, types in outputs.items() if VALID in types}
        targets = BatchTargets(tokens, self.owner, valid)
        model = self.compiled if compiled else self.student
        with attention_kernel(compiled, self.dist):
            _, factor = forward_backward(model, images, targets, self.config, 0, self.dist, dtype)
        scale_and_clip(self.student, factor)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def run(self, loader: BatchLoader, steps: int, dtype: torch.dtype) -> None:
        for batch in loader.batches(0, steps):
            images = batch.images.to(self.dist.device)
            if batch.teacher_outputs is None:
                outputs = run_teachers(self.teachers, images, self.grid, dtype)
            else:
                outputs = {
                    n: {k: v.to(self.dist.device) for k, v in types.items()}
                    for n, types in batch.teacher_outputs.items()
                }
            self.step(images, outputs, dtype, False)


def _teacher(student: str, name: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    if student == "dune-mini":
        return load_teacher(name, device, dtype).to(device)
    vit = VisionTransformer(VitConfig(1024, 24, 16, 4096, 16 if name == "mast3r" else 14, 0, 24, "offset"))
    token_types = (CLS, PATCH) if name == "dinov2" else (PATCH,)
    return VitTeacher(name, vit, token_types, Source("random weights")).to(device).eval().requires_grad_(False)


def _synthetic_photos(folder: Path, count: int) -> PhotoDataset:
    """JPEGs of smooth noise, 640 x 480."""
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = rng.integers(0, 256, (PHOTO_PX[1] // 8, PHOTO_PX[0] // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(PHOTO_PX, Image.Resampling.BICUBIC).save(folder / f"{index:03d}.jpg", quality=90)
    return open_dataset([str(folder)], [], 0.0)
