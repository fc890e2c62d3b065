"""Teacher outputs computed once: fixed crops and their tokens, float16, in safetensors shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dune_cli.console import progress
from dune_cli.io.atomic import atomic_path
from dune_cli.teachers.base import Teacher
from dune_cli.training.augment import Augmentation
from dune_cli.training.photos import Photos, fixed_crop
from dune_cli.training.sampler import Slot

ROWS = 64  # crops a shard


@dataclass(frozen=True)
class CacheKey:
    """What the cached values depend on; another key is another folder."""

    teachers: dict[str, str]  # name -> sha256 or description of the weights
    size_px: int
    grid: tuple[int, int]
    crops: int
    seed: int
    photometric: bool
    photos: str  # hash of the names of all training photos, in order

    @property
    def folder(self) -> str:
        text = json.dumps(self.__dict__, sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def names_hash(photos: Photos) -> str:
    """A hash of the names of all training photos, in order."""
    digest = hashlib.sha256()
    for group in photos.train:
        for item in group:
            digest.update(item.name.encode() + b"\0")
    return digest.hexdigest()


class TeacherCache:
    """Rows are photo-major: row (first photo of the group + index)·crops + crop."""

    def __init__(self, folder: Path, key: CacheKey, photos: Photos) -> None:
        self.folder, self.key, self.photos = folder / key.folder, key, photos
        self.first = [sum(photos.sizes[:group]) for group in range(len(photos.sizes))]
        self._open: dict[int, Any] = {}

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

    def fill(
        self,
        teachers: Mapping[str, Teacher],
        settings: Augmentation,
        device: torch.device,
        workers: int,
        shards: list[int],
    ) -> None:
        """Computes `shards`, each written whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(workers) as pool:
            for shard in progress(shards, "teacher cache", unit="shard"):
                rows = range(shard * ROWS, min((shard + 1) * ROWS, self.rows))
                images = torch.stack(list(pool.map(lambda row: self._crop(row, settings), rows)))
                tensors = {"image": (images * 255).round().to(torch.uint8)}
                # the teachers see what the student will: the 8-bit crop
                seen = tensors["image"].to(device).float() / 255
                for name, teacher in teachers.items():
                    for kind, value in teacher(seen, self.key.grid).items():
                        tensors[f"{name}/{kind}"] = value.half().cpu().contiguous()
                with atomic_path(self.path(shard)) as temporary:
                    save_file(tensors, temporary)

    def _crop(self, row: int, settings: Augmentation) -> torch.Tensor:
        photo, crop = divmod(row, self.key.crops)
        group = max(g for g, first in enumerate(self.first) if first <= photo)
        slot = Slot(group, photo - self.first[group], position=0, epoch=0)
        return fixed_crop(self.photos, slot, crop, self.key.size_px, settings, self.key.seed)

    def read(self, slot: Slot) -> dict[str, torch.Tensor]:
        """A slot's crop ("image", uint8) and tokens ("<teacher>/<kind>", float16); crops take turns by epoch."""
        row = (self.first[slot.group] + slot.index) * self.key.crops + slot.epoch % self.key.crops
        shard, place = divmod(row, ROWS)
        if shard not in self._open:
            self._open[shard] = safe_open(self.path(shard), framework="pt")
        file = self._open[shard]
        return {name: file.get_slice(name)[place] for name in file.keys()}  # noqa: SIM118 (no mapping)
