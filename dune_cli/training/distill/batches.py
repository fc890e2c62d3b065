"""A step's images and, with a cache, its teacher tokens: loaded ahead by threads, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from dune_cli.training.common.dataset import Augmentation, Photos, training_crop
from dune_cli.training.common.schedule import BatchSlot, Sampler
from dune_cli.training.distill.teacher_cache import TeacherCache

AHEAD = 2  # steps


@dataclass(frozen=True)
class Batch:
    """images (B, 3, S, S) in [0, 1]; group (B) of each; tokens by teacher and type where they were cached."""

    images: torch.Tensor
    group: torch.Tensor
    tokens: dict[str, dict[str, torch.Tensor]] | None


@dataclass(frozen=True)
class Loader:
    """Makes this rank's batches of steps `first` to `last`."""

    photos: Photos
    sampler: Sampler
    size_px: int
    settings: Augmentation
    cache: TeacherCache | None
    workers: int

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """In order; up to two steps are loaded ahead."""
        with ThreadPoolExecutor(self.workers) as pool:
            ahead: list[tuple[list[BatchSlot], list[Future]]] = []
            try:
                for step in range(first, last):
                    while len(ahead) <= AHEAD and step + len(ahead) < last:
                        slots = self.sampler.slots(step + len(ahead))
                        ahead.append((slots, [pool.submit(self._load, slot) for slot in slots]))
                    slots, futures = ahead.pop(0)
                    yield self._collate([future.result() for future in futures], slots)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _load(self, slot: BatchSlot) -> dict[str, torch.Tensor]:
        if self.cache:
            return self.cache.read(slot)
        return {"image": training_crop(self.photos, slot, self.size_px, self.settings, self.sampler.seed)}

    def _collate(self, rows: list[dict[str, torch.Tensor]], slots: list[BatchSlot]) -> Batch:
        images = torch.stack([row["image"] for row in rows])
        if images.dtype == torch.uint8:
            images = images.float() / 255
        tokens: dict[str, dict[str, torch.Tensor]] | None = None
        if self.cache:
            tokens = {}
            for name in rows[0]:
                if name != "image":
                    teacher, kind = name.rsplit("/", 1)
                    tokens.setdefault(teacher, {})[kind] = torch.stack([row[name] for row in rows]).float()
        return Batch(images, torch.tensor([slot.group for slot in slots]), tokens)
