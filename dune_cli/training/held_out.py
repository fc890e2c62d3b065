"""How well a student predicts its teachers on photos that training never saw, beside two controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from dune_cli.teachers.base import CLS, Teacher
from dune_cli.training.photos import Photos, centre_square

LIMIT = 256  # photos
BATCH = 8


@dataclass(frozen=True)
class HeldOut:
    """Mean cosine to a teacher's raw tokens of one type, over photos (and patches).

    student, untrained (the same network with fresh weights), mean_feature (the constant that the teacher's running
    mean is). standardised: the student's cosine after the mean is taken away, where a constant scores 0.
    """

    teacher: str
    kind: str
    student: float
    untrained: float
    mean_feature: float
    standardised: float
    photos: int


@torch.inference_mode()
def held_out_scores(
    student: nn.Module,
    untrained: nn.Module,
    teachers: Mapping[str, Teacher],
    norms: nn.ModuleDict,
    photos: Photos,
    size_px: int,
    grid: tuple[int, int],
    device: torch.device,
) -> list[HeldOut]:
    """Scores on up to 256 held-out photos at their centred square; both networks predict standardised tokens.

    Photos that cannot be read are left out and noted; the result says how many counted. Empty where none is held out.
    """
    sums: dict[tuple[str, str], torch.Tensor] = {}
    count = 0
    items = photos.held_out[:LIMIT]
    for first in range(0, len(items), BATCH):
        read = (photos.read(item) for item in items[first : first + BATCH])
        crops = [centre_square(image, size_px) for image in read if image is not None]
        if not crops:
            continue
        images = torch.stack(crops).to(device)
        count += len(crops)
        predictions, before = student(images), untrained(images)
        for name, teacher in teachers.items():
            for kind, raw in teacher(images, grid).items():
                norm = norms[name][kind]
                values = (
                    norm.restore(predictions[name][kind]),
                    norm.restore(before[name][kind]),
                    norm.mean.expand_as(raw),
                )
                row = [_mean_cosine(value, raw, kind) for value in values]
                row.append(_mean_cosine(predictions[name][kind], norm(raw), kind))
                sums[name, kind] = sums.get((name, kind), torch.zeros(4)) + torch.tensor(row)
    return [HeldOut(name, kind, *(total / count).tolist(), photos=count) for (name, kind), total in sums.items()]


def _mean_cosine(a: torch.Tensor, b: torch.Tensor, kind: str) -> float:
    """Summed over images, averaged over patches."""
    cosine = F.cosine_similarity(a.float(), b.float(), dim=-1)
    return float(cosine.sum() if kind == CLS else cosine.mean(1).sum())
