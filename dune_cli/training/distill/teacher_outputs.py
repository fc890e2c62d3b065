"""Teacher outputs: computed for a batch, or once for fixed crops and cached in float16 safetensors shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dune_cli.console import progress
from dune_cli.errors import JobFailed, UserError
from dune_cli.io.cache import check_cached, note_damaged, text_array, text_of, write_cached
from dune_cli.io.safe_read import parse_json
from dune_cli.teachers.registry import load_teacher
from dune_cli.teachers.teacher import CLS, PATCH, VALID, Teacher
from dune_cli.training.common.dataset import Augmentation, PhotoDataset, fixed_crop
from dune_cli.training.common.dist import Dist
from dune_cli.training.common.loop import autocast
from dune_cli.training.common.sampler import BatchSlot

SCHEMA = "dune.teacher-cache/1"
SHARD_ROWS = 64  # crops
MAX_OPEN_SHARDS = 256
BROKEN = "broken"  # array of a shard: JSON text, photo -> reason

TokenWidths = Mapping[str, Mapping[str, int]]  # teacher -> token type -> channels
# teacher -> token type -> (B, D) or (B, N, D); of a teacher with a gate also "valid" (B, N)
TeacherOutputs = dict[str, dict[str, torch.Tensor]]


def weights_identity(teacher: Teacher) -> str | None:
    """The hash of a teacher's weights, with that of its gate's; None where the weights have none."""
    own = teacher.source.sha256
    return own if teacher.gate is None else f"{own}, where {teacher.gate.sha256} allows"


def token_weights(outputs: Mapping[str, torch.Tensor], kind: str) -> torch.Tensor | None:
    """Which tokens of a type count: of patches (B, N), of CLS (B); None where all do."""
    valid = outputs.get(VALID)
    return valid if valid is None or kind != CLS else (valid.sum(1) > 0).to(valid.dtype)


def load_teachers(names: Sequence[str], device: torch.device, dtype: torch.dtype) -> dict[str, Teacher]:
    """The frozen teachers by name. UserError for two of one name."""
    teachers: dict[str, Teacher] = {}
    for text in names:
        teacher = load_teacher(text, device, dtype).to(device)
        if teacher.name in teachers:
            raise UserError(f"--teachers: {teacher.name} is there twice; name each teacher once")
        teachers[teacher.name] = teacher
    return teachers


def run_teachers(
    teachers: Mapping[str, Teacher],
    images: torch.Tensor,
    grid: tuple[int, int],
    dtype: torch.dtype,
    batch_size: int | None = None,
) -> TeacherOutputs:
    """Every teacher's tokens of images (B, 3, H, W) on `grid` (h, w), float32, run under autocast to `dtype`.

    batch_size: images a forward pass; None: all.
    """
    parts = images.split(batch_size or len(images))
    with autocast(images.device, dtype):
        outputs = [{name: teacher(part, grid) for name, teacher in teachers.items()} for part in parts]
    if len(outputs) == 1:
        return outputs[0]
    return {
        name: {token_type: torch.cat([part[name][token_type] for part in outputs]) for token_type in types}
        for name, types in outputs[0].items()
    }


@dataclass(frozen=True)
class CacheKey:
    """What the cached values depend on; a cache of another key has another folder."""

    teachers: dict[str, str]  # name -> sha256 or description of the weights
    size_px: int
    grid: tuple[int, int]
    crops: int
    seed: int
    photometric: bool
    photos: str  # hash of the names of all photos, in order
    dtype: str

    @property
    def folder(self) -> str:
        """The name of the cache's folder."""
        text = json.dumps(self.__dict__, sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class TeacherCache:
    """Fixed crops and their teacher outputs. Rows are photo-major: (index over all groups) · crops + crop."""

    def __init__(self, folder: Path, key: CacheKey, dataset: PhotoDataset) -> None:
        self.folder, self.key, self.dataset = folder / key.folder, key, dataset
        sizes = dataset.group_sizes
        self.made_of = f"{key.folder} of {sum(sizes) * key.crops} rows"
        self.first_of_group = [sum(sizes[:group]) for group in range(len(sizes))]
        self._opened = lru_cache(maxsize=MAX_OPEN_SHARDS)(self._open)

    @property
    def rows(self) -> int:
        return sum(self.dataset.group_sizes) * self.key.crops

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-self.rows // SHARD_ROWS)

    @property
    def bytes(self) -> int:
        """The size of the shards on disk."""
        return sum(self.path(shard).stat().st_size for shard in range(self.shards) if self.path(shard).exists())

    def path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.safetensors"

    def missing_shards(self, teachers: Mapping[str, Teacher], dist: Dist) -> list[int]:
        """Of this process's shards (every `world_size`-th), those to compute: missing, damaged, or of other teachers.

        Reads all that exist; a note names the damaged ones.
        """
        own = range(dist.rank, self.shards, dist.world_size)
        checked = progress(own, "teacher cache, checking", unit="shard")
        return [shard for shard in checked if not self._is_valid(shard, teachers)]

    def fill(
        self,
        teachers: Mapping[str, Teacher],
        shards: Sequence[int],
        augmentation: Augmentation,
        dist: Dist,
        workers: int,
        dtype: torch.dtype,
        batch_size: int = SHARD_ROWS,
    ) -> None:
        """Computes `shards`; each is written atomically. workers: threads that load photos.

        JobFailed when a shard cannot be written; the next run uses those that exist.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(workers) as pool:
            for shard in progress(shards, "teacher cache", unit="shard"):
                rows = range(shard * SHARD_ROWS, min((shard + 1) * SHARD_ROWS, self.rows))
                crops = torch.stack(list(pool.map(lambda row: self._crop(row, augmentation), rows)))
                tensors = {"image": (crops * 255).round().to(torch.uint8)}
                # the teachers get what the student will: the 8-bit crop
                images = tensors["image"].to(dist.device).float() / 255
                for name, types in run_teachers(teachers, images, self.key.grid, dtype, batch_size).items():
                    for token_type, value in types.items():
                        tensors[f"{name}/{token_type}"] = _to_float16(value, name)
                self._write(shard, tensors)

    def read(self, slot: BatchSlot) -> dict[str, torch.Tensor]:
        """A slot's crop ("image", uint8) and outputs ("<teacher>/<token type>", float16); the crop changes by epoch.

        JobFailed for a shard that cannot be read.
        """
        row = (self.first_of_group[slot.group] + slot.index) * self.key.crops + slot.epoch % self.key.crops
        shard, index = divmod(row, SHARD_ROWS)
        try:
            file = self._opened(shard)
            return {name: file.get_slice(name)[index] for name in file.keys() if name != BROKEN}  # noqa: SIM118
        except (OSError, SafetensorError, IndexError) as error:
            raise self._unreadable(shard, error) from error

    def broken(self) -> dict[str, str]:
        """Photos that could not be read when the cache was filled: label -> reason."""
        broken: dict[str, str] = {}
        for shard in range(self.shards):
            try:
                broken |= self._broken(shard)
            except (OSError, SafetensorError, ValueError) as error:
                raise self._unreadable(shard, error) from error
        return broken

    def _is_valid(self, shard: int, teachers: Mapping[str, Teacher]) -> bool:
        path = self.path(shard)
        if not check_cached(path, SCHEMA, self._made_of(shard)):
            return False
        rows, size = min(SHARD_ROWS, self.rows - shard * SHARD_ROWS), self.key.size_px
        expected = {"image": ("U8", [rows, 3, size, size])}
        patches = self.key.grid[0] * self.key.grid[1]
        for name, teacher in teachers.items():
            for token_type, width in teacher.widths.items():
                tokens = [patches] if token_type == PATCH else []
                expected[f"{name}/{token_type}"] = "F16", [rows, *tokens, width]
            if teacher.gate is not None:
                expected[f"{name}/{VALID}"] = "F16", [rows, patches]
        try:
            self._broken(shard)
            with safe_open(path, framework="np") as file:
                slices = {name: file.get_slice(name) for name in file.keys() if name != BROKEN}  # noqa: SIM118
                if {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()} != expected:
                    raise UserError("its arrays are not those of these teachers")
        except (SafetensorError, OSError, ValueError) as error:
            note_damaged(path, error)
            return False
        return True

    def _made_of(self, shard: int) -> str:
        return f"{self.made_of}, shard {shard}"

    def _write(self, shard: int, tensors: dict[str, torch.Tensor]) -> None:
        try:
            arrays = {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
            arrays[BROKEN] = text_array(json.dumps(self.dataset.broken))
            write_cached(self.path(shard), SCHEMA, self._made_of(shard), arrays)
        except OSError as error:
            reason = error.strerror or error
            raise JobFailed(
                f"cannot write the teacher cache {self.path(shard)} ({reason}); make room, or use fewer --crops, and "
                "run the same command again"
            ) from error

    def _crop(self, row: int, augmentation: Augmentation) -> torch.Tensor:
        photo, crop = divmod(row, self.key.crops)
        group = max(g for g, first in enumerate(self.first_of_group) if first <= photo)
        slot = BatchSlot(group, photo - self.first_of_group[group], position=0, epoch=0)
        return fixed_crop(self.dataset, slot, crop, self.key.size_px, augmentation, self.key.seed)

    def _broken(self, shard: int) -> dict[str, str]:
        with safe_open(self.path(shard), framework="np") as file:
            value = parse_json(text_of(file.get_tensor(BROKEN)), str(self.path(shard)))
        if not isinstance(value, dict) or not all(isinstance(reason, str) for reason in value.values()):
            raise UserError("its list of broken photos is of another form")
        return value

    def _open(self, shard: int) -> Any:
        return safe_open(self.path(shard), framework="pt")

    def _unreadable(self, shard: int, error: Exception) -> JobFailed:
        return JobFailed(
            f"cannot read the teacher cache {self.path(shard)} ({error}), which was complete when the run began; run "
            "the same command again, which computes it again"
        )


def _to_float16(value: torch.Tensor, teacher: str) -> torch.Tensor:
    half = value.half().cpu().contiguous()
    if not bool(torch.isfinite(half).all()):
        raise JobFailed(
            f"outputs of the teacher {teacher} do not fit into float16 (largest {float(value.abs().max()):.3g}), "
            "which the cache stores; leave out --cache"
        )
    return half
