"""Batches of a distillation: images and, with a cache, teacher outputs, loaded ahead by threads in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from dune_cli.training.common.dataset import Augmentation, PhotoDataset, training_crop
from dune_cli.training.common.sampler import BatchSlot, Sampler
from dune_cli.training.distill.teacher_outputs import TeacherCache, TeacherOutputs

PREFETCHED_STEPS = 2


@dataclass(frozen=True)
class Batch:
    """images (B, 3, S, S) in [0, 1]; group (B,) of each image; teacher_outputs where they are cached."""

    images: torch.Tensor
    group: torch.Tensor
    teacher_outputs: TeacherOutputs | None


@dataclass(frozen=True)
class BatchLoader:
    """Makes this process's batches."""

    dataset: PhotoDataset
    sampler: Sampler
    size_px: int
    augmentation: Augmentation
    cache: TeacherCache | None
    workers: int

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """The batches of the steps in range(first, last), in order; up to two steps are loaded ahead."""
        with ThreadPoolExecutor(self.workers) as pool:
            queue: list[tuple[list[BatchSlot], list[Future]]] = []
            try:
                for step in range(first, last):
                    while len(queue) <= PREFETCHED_STEPS and step + len(queue) < last:
                        slots = self.sampler.slots(step + len(queue))
                        queue.append((slots, [pool.submit(self._load, slot) for slot in slots]))
                    slots, futures = queue.pop(0)
                    yield self._collate([future.result() for future in futures], slots)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _load(self, slot: BatchSlot) -> dict[str, torch.Tensor]:
        if self.cache:
            return self.cache.read(slot)
        return {"image": training_crop(self.dataset, slot, self.size_px, self.augmentation, self.sampler.seed)}

    def _collate(self, rows: list[dict[str, torch.Tensor]], slots: list[BatchSlot]) -> Batch:
        images = torch.stack([row["image"] for row in rows])
        if images.dtype == torch.uint8:
            images = images.float() / 255
        outputs: TeacherOutputs | None = None
        if self.cache:
            outputs = {}
            for name in rows[0]:
                if name != "image":
                    teacher, token_type = name.rsplit("/", 1)
                    outputs.setdefault(teacher, {})[token_type] = torch.stack([row[name] for row in rows]).float()
        return Batch(images, torch.tensor([slot.group for slot in slots]), outputs)
