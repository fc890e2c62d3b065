"""Teacher outputs computed once: fixed crops and their tokens, float16, in safetensors shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dune_cli.checkpoints import files
from dune_cli.console import progress
from dune_cli.errors import JobFailed
from dune_cli.io.atomic import atomic_path
from dune_cli.teachers.base import Teacher
from dune_cli.training.augment import Augmentation
from dune_cli.training.photos import Photos, fixed_crop
from dune_cli.training.ranks import Ranks
from dune_cli.training.sampler import Slot
from dune_cli.training.teaching import teach

ROWS = 64  # crops a shard
OPEN_SHARDS = 256


@dataclass(frozen=True)
class CacheKey:
    """What the cached values depend on; another key is another folder."""

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
        text = json.dumps(self.__dict__, sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class TeacherCache:
    """Rows are photo-major: row (first photo of the group + index)·crops + crop."""

    def __init__(self, folder: Path, key: CacheKey, photos: Photos) -> None:
        self.folder, self.key, self.photos = folder / key.folder, key, photos
        self.first = [sum(photos.sizes[:group]) for group in range(len(photos.sizes))]
        self._shard = lru_cache(maxsize=OPEN_SHARDS)(self._open)

    @property
    def rows(self) -> int:
        return sum(self.photos.sizes) * self.key.crops

    @property
    def shards(self) -> int:
        return -(-self.rows // ROWS)

    def path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.safetensors"

    def missing(self) -> list[int]:
        """Shards that are still to be computed; one that exists is complete, for it was renamed into place."""
        return [shard for shard in range(self.shards) if not self.path(shard).exists()]

    @property
    def bytes(self) -> int:
        """What the shards take on the disk."""
        return sum(self.path(shard).stat().st_size for shard in range(self.shards) if self.path(shard).exists())

    def fill(
        self,
        teachers: Mapping[str, Teacher],
        settings: Augmentation,
        here: Ranks,
        workers: int,
        amp: torch.dtype,
        at_once: int = ROWS,
    ) -> None:
        """Computes what is missing of this rank's shards (every `count`-th), each written whole or not at all.

        JobFailed when a shard cannot be written; those that are there are used by the next run.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = [shard for shard in self.missing() if shard % here.count == here.rank]
        with ThreadPoolExecutor(workers) as pool:
            for shard in progress(mine, "teacher cache", unit="shard"):
                rows = range(shard * ROWS, min((shard + 1) * ROWS, self.rows))
                crops = torch.stack(list(pool.map(lambda row: self._crop(row, settings), rows)))
                tensors = {"image": (crops * 255).round().to(torch.uint8)}
                # the teachers see what the student will: the 8-bit crop
                seen = tensors["image"].to(here.device).float() / 255
                for name, kinds in teach(teachers, seen, self.key.grid, amp, at_once).items():
                    for kind, value in kinds.items():
                        tensors[f"{name}/{kind}"] = _half(value, name)
                self._write(shard, tensors)

    def _write(self, shard: int, tensors: dict[str, torch.Tensor]) -> None:
        try:
            with atomic_path(self.path(shard)) as temporary:
                files.write_safetensors(temporary, tensors, {"broken": json.dumps(self.photos.broken)})
        except OSError as error:
            why = error.strerror or error
            raise JobFailed(
                f"cannot write the teacher cache {self.path(shard)} ({why}); make room, or use fewer --crops, and run "
                "the same command again"
            ) from error

    def _crop(self, row: int, settings: Augmentation) -> torch.Tensor:
        photo, crop = divmod(row, self.key.crops)
        group = max(g for g, first in enumerate(self.first) if first <= photo)
        slot = Slot(group, photo - self.first[group], position=0, epoch=0)
        return fixed_crop(self.photos, slot, crop, self.key.size_px, settings, self.key.seed)

    def broken(self) -> dict[str, str]:
        """Photos that could not be read when the cache was filled: label -> why."""
        found: dict[str, str] = {}
        for shard in range(self.shards):
            with safe_open(self.path(shard), framework="pt") as file:
                found |= json.loads(file.metadata()["broken"])
        return found

    def _open(self, shard: int) -> Any:
        return safe_open(self.path(shard), framework="pt")

    def read(self, slot: Slot) -> dict[str, torch.Tensor]:
        """A slot's crop ("image", uint8) and tokens ("<teacher>/<kind>", float16); crops take turns by epoch.

        JobFailed for a shard that cannot be read.
        """
        row = (self.first[slot.group] + slot.index) * self.key.crops + slot.epoch % self.key.crops
        shard, place = divmod(row, ROWS)
        try:
            file = self._shard(shard)
            return {name: file.get_slice(name)[place] for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError) as error:
            raise JobFailed(
                f"cannot read the teacher cache {self.path(shard)} ({error}); delete that file and run the same "
                "command again"
            ) from error


def _half(value: torch.Tensor, teacher: str) -> torch.Tensor:
    half = value.half().cpu().contiguous()
    if not bool(torch.isfinite(half).all()):
        raise JobFailed(
            f"outputs of the teacher {teacher} do not fit into float16 (largest {float(value.abs().max()):.3g}), "
            "which the cache stores; leave out --cache"
        )
    return half
