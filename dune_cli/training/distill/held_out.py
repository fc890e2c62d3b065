"""How well a student predicts its teachers on photos that training never saw, beside two controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from dune_cli.teachers.teacher import Teacher
from dune_cli.training.common.dataset import Photos, centre_square

LIMIT = 256  # photos
BATCH = 8
ZERO = 1e-6  # norms below it are of nothing


@dataclass(frozen=True)
class HeldOut:
    """Mean cosine to a teacher's raw tokens of one type, over all tokens that are not zero.

    student, untrained (the same network with fresh weights), mean_feature (the constant that the teacher's running
    mean is). standardised, untrained_standardised: the two networks' cosine after the mean is taken away, where a
    constant scores 0. tokens: share of the teacher's tokens that are not zero, whose cosine is defined (where nobody is
    seen, a map of people is zero). All are NaN where there is none.
    """

    teacher: str
    kind: str
    student: float
    untrained: float
    mean_feature: float
    standardised: float
    untrained_standardised: float
    tokens: float
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
                student_says, untrained_says = predictions[name][kind].float(), before[name][kind].float()
                standardised = norm(raw)
                pairs = (
                    (norm.restore(student_says), raw),
                    (norm.restore(untrained_says), raw),
                    (norm.mean.expand_as(raw), raw),
                    (student_says, standardised),
                    (untrained_says, standardised),
                )
                size = torch.tensor([raw[..., 0].numel()])
                row = torch.cat([cosine_sums(pairs, raw), size])
                sums[name, kind] = sums.get((name, kind), 0) + row
    return [
        HeldOut(name, kind, *(total[:5] / total[5]).tolist(), tokens=float(total[5] / total[6]), photos=count)
        for (name, kind), total in sums.items()
    ]


def cosine_sums(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], raw: torch.Tensor) -> torch.Tensor:
    """(pairs + 1) float64 on the CPU: each pair's cosines summed over the tokens where `raw` (..., D) is not zero, and
    how many these are. `pairs`: tokens (..., D) each."""
    there = raw.norm(dim=-1) > ZERO
    sums = [F.cosine_similarity(a.float(), b.float(), dim=-1)[there].double().sum() for a, b in pairs]
    return torch.stack([*sums, there.sum().double()]).cpu()
