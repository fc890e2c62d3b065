"""Speed of the distiller: the loop's step against this machine's matrix products, with and without the teacher cache.

Real loop, real losses, made-up photos. `dune-mini` learns from the open teachers' own files; DUNE's ViTs from three
ViT-L of random weights, whose speed is that of the published teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

from dune_cli import runtime
from dune_cli.evaluation.speed import SQUARE, Stopwatch, best_seconds, count_flop, linear_products
from dune_cli.io.outputs import scratch_folder
from dune_cli.models.vit import VisionTransformer, VitConfig
from dune_cli.provenance import Source
from dune_cli.teachers.registry import load_teacher
from dune_cli.teachers.teacher import CLS, PATCH, Teacher, VitTeacher
from dune_cli.training.common.dataset import Augmentation, PhotoDataset, open_dataset
from dune_cli.training.common.dist import Dist, attention_kernel
from dune_cli.training.common.loop import weight_decay_groups
from dune_cli.training.common.sampler import Sampler
from dune_cli.training.distill.batches import Batch, BatchLoader
from dune_cli.training.distill.config import DistillConfig
from dune_cli.training.distill.step import forward_backward, scale_and_clip
from dune_cli.training.distill.students import Student, freeze_unused, new_encoder
from dune_cli.training.distill.teacher_norm import new_teacher_norms
from dune_cli.training.distill.teacher_outputs import CacheKey, TeacherCache, run_teachers

# student -> teachers, side of the crops, images a step
RECIPES = {
    "dune-mini": (("xfeat", "efficientnet-lite2"), 224, 32),
    "dune-vits14": (("dinov2", "mast3r", "multihmr"), 336, 8),
    "dune-vitb14": (("dinov2", "mast3r", "multihmr"), 336, 8),
}
PHOTO_PX = (640, 480)


@dataclass(frozen=True)
class StepSpeed:
    """A way to run the step, its teachers' answers given: seconds, images a second, and the share of the number type's
    matrix-product rate."""

    way: str
    seconds: float
    images_per_second: float
    gflop_per_second: float
    share: float


@dataclass(frozen=True)
class DistillSpeed:
    """All of one run; images a second but for `gflop` (of a step) and `peak` (GFLOP/s by number type).

    steps: float32, the fast type, and that compiled. teachers: all of them, in the fast type. loading: photos decoded
    and cropped, and cached rows read, by `workers` threads with nothing else running. loop: the whole loop in the fast
    type, teachers asked on the fly and read from the cache.
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
    """Times the distiller of a student of `RECIPES`; WeightsMissing where an open teacher's file is not here."""
    names, size, batch = RECIPES[student]
    size, batch = size_px or size, batch_size or batch
    where = runtime.pick_device(device)
    fast = runtime.pick_dtype("auto", where)
    here = Dist(0, 1, where)
    report(f"building {student} and its teachers {', '.join(names)}")
    encoder = new_encoder(student, size, 0, open_weights=False)
    grid = (size // encoder.patch,) * 2
    teachers = {name: _teacher(student, name, where, fast) for name in names}
    config = DistillConfig(names, ("made-up photos",), student=student, size_px=size, batch_size=batch)
    trainee = Student(encoder, {name: teacher.widths for name, teacher in teachers.items()}, config.projector, 0)
    freeze_unused(trainee.to(where), size)
    watch = Stopwatch(where, cpu_time)

    with scratch_folder(prefix="dune-bench-") as scratch:
        photos = _photos(scratch, batch)
        settings = Augmentation(photometric=True)
        plain = BatchLoader(photos, Sampler(photos.group_sizes, batch, 0), size, settings, None, workers)
        key = CacheKey(dict.fromkeys(names, ""), size, grid, 1, 0, True, photos.hash, str(fast))
        cache = TeacherCache(scratch / "cache", key, photos)
        cache.fill(teachers, range(cache.shards), settings, here, workers, fast, batch)
        cached = replace(plain, cache=cache)

        images = next(plain.batches(0, 1)).images.to(where)
        answers = run_teachers(teachers, images, grid, fast)
        loop = _Loop(trainee, teachers, grid, config, here)
        with sdpa_kernel(SDPBackend.MATH):
            gflop = count_flop(lambda: loop.step(images, answers, torch.float32, False)) / 1e9
        names_of = {torch.float32: "float32", fast: str(fast).removeprefix("torch.")}
        ways = {name: (dtype, False) for dtype, name in names_of.items()}
        ways[f"{names_of[fast]}, compiled"] = (fast, True)
        calls: dict[str, Callable[[], object]] = {
            way: lambda dtype=dtype, compiled=compiled: loop.step(images, answers, dtype, compiled)
            for way, (dtype, compiled) in ways.items()
        }
        calls["teachers"] = lambda: run_teachers(teachers, images, grid, fast)
        calls["load photos"] = lambda: _drain(plain, rounds)
        calls["load cache"] = lambda: _drain(cached, rounds)
        calls["on the fly"] = lambda: loop.run(plain, rounds, fast)
        calls["cached"] = lambda: loop.run(cached, rounds, fast)
        products = {
            dtype: linear_products(where, dtype, ((SQUARE,) * 3, *_shapes(trainee, batch, grid))) for dtype in names_of
        }
        timed = {(dtype, shape): call for dtype, found in products.items() for shape, (call, _) in found.items()}
        best = best_seconds({**timed, **calls}, rounds, watch, report)

    peak = {
        names_of[dtype]: max(flop / best[dtype, shape] / 1e9 for shape, (_, flop) in found.items())
        for dtype, found in products.items()
    }
    steps = []
    for way, (dtype, _) in ways.items():
        rate = gflop / best[way]
        steps.append(StepSpeed(way, best[way], batch / best[way], rate, rate / peak[names_of[dtype]]))
    return DistillSpeed(
        student=student,
        teachers=names,
        device=str(where),
        threads=torch.get_num_threads(),
        workers=workers,
        clock="processor" if cpu_time else "wall",
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
    """The distiller's step, without checkpoints and logs."""

    def __init__(
        self,
        student: Student,
        teachers: Mapping[str, Teacher],
        grid: tuple[int, int],
        config: DistillConfig,
        here: Dist,
    ) -> None:
        self.student, self.teachers, self.grid, self.config, self.here = student.train(), teachers, grid, config, here
        self.norms = new_teacher_norms({n: t.widths for n, t in teachers.items()}, config.norm).to(here.device).train()
        self.optimizer = torch.optim.AdamW(weight_decay_groups(student, config.weight_decay), lr=1e-6, fused=True)
        self.compiled = torch.compile(student)
        self.owner = torch.full((config.batch_size,), -1, device=here.device)

    def step(self, images: torch.Tensor, answers: Mapping, dtype: torch.dtype, compiled: bool) -> None:
        targets = {n: {k: self.norms[n][k](v, 0.0) for k, v in kinds.items()} for n, kinds in answers.items()}
        model = self.compiled if compiled else self.student
        with attention_kernel(compiled, self.here):
            _, factor = forward_backward(model, images, targets, self.owner, self.config, 0, self.here, dtype)
        scale_and_clip(self.student, factor)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def run(self, loader: BatchLoader, steps: int, dtype: torch.dtype) -> None:
        for batch in loader.batches(0, steps):
            images = batch.images.to(self.here.device)
            self.step(images, self._answers(batch, images, dtype), dtype, False)

    def _answers(self, batch: Batch, images: torch.Tensor, dtype: torch.dtype) -> Mapping:
        if batch.teacher_outputs is None:
            return run_teachers(self.teachers, images, self.grid, dtype)
        return {n: {k: v.to(self.here.device) for k, v in kinds.items()} for n, kinds in batch.teacher_outputs.items()}


def _drain(loader: BatchLoader, steps: int) -> int:
    return sum(len(batch.images) for batch in loader.batches(0, steps))


def _teacher(student: str, name: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    if student == "dune-mini":
        return load_teacher(name, device, dtype).to(device)
    vit = VisionTransformer(VitConfig(1024, 24, 16, 4096, 16 if name == "mast3r" else 14, 0, 24, "offset"))
    kinds = (CLS, PATCH) if name == "dinov2" else (PATCH,)
    return VitTeacher(name, vit, kinds, Source("random weights")).to(device).eval().requires_grad_(False)


def _photos(folder: Path, count: int) -> PhotoDataset:
    """JPEGs of smooth noise, of a usual size."""
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = rng.integers(0, 256, (PHOTO_PX[1] // 8, PHOTO_PX[0] // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(PHOTO_PX, Image.Resampling.BICUBIC).save(folder / f"{index:03d}.jpg", quality=90)
    return open_dataset([str(folder)], [], 0.0)


def _shapes(student: Student, batch: int, grid: tuple[int, int]) -> tuple[tuple[int, int, int], ...]:
    """(m, k, n) of the encoder's MLP."""
    tokens, config = batch * grid[0] * grid[1], student.encoder.config
    return (tokens, config.width, config.hidden), (tokens, config.hidden, config.width)
