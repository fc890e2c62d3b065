"""Scores of a student on held-out photos: cosine to its teachers' tokens, beside two controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from dune_cli.teachers.teacher import Teacher
from dune_cli.training.common.dataset import PhotoDataset, centre_crop
from dune_cli.training.distill.teacher_outputs import token_weights

MAX_PHOTOS = 256
BATCH_SIZE = 8
MIN_TOKEN_NORM = 1e-6  # the cosine of smaller tokens is undefined


@dataclass(frozen=True)
class HeldOutScore:
    """Mean cosine to one teacher's tokens of one type, over the tokens that are not zero; NaN where all are.

    student: the student's. untrained: of the same network with new weights. mean_feature: of a constant prediction, the
    teacher's running mean. standardised, untrained_standardised: of the two networks after the mean is subtracted,
    where a constant scores 0. tokens: share of the teacher's tokens that are not zero (a map of people is zero where
    nobody is visible; tokens that a teacher's gate shuts out count as zero). photos: how many were scored.
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
    dataset: PhotoDataset,
    size_px: int,
    grid: tuple[int, int],
    device: torch.device,
) -> list[HeldOutScore]:
    """Scores on centre crops of up to 256 held-out photos; both networks predict standardised tokens.

    Photos that cannot be read are recorded and skipped. Empty where none is held out.
    """
    sums: dict[tuple[str, str], torch.Tensor] = {}
    count = 0
    items = dataset.held_out[:MAX_PHOTOS]
    for first in range(0, len(items), BATCH_SIZE):
        photos = (dataset.read(item) for item in items[first : first + BATCH_SIZE])
        crops = [centre_crop(photo, size_px) for photo in photos if photo is not None]
        if not crops:
            continue
        images = torch.stack(crops).to(device)
        count += len(crops)
        by_student, by_untrained = student(images), untrained(images)
        for name, teacher in teachers.items():
            outputs = teacher(images, grid)
            for kind in teacher.widths:
                raw, weights = outputs[kind], token_weights(outputs, kind)
                if weights is not None:  # tokens that are not valid count as zero ones
                    raw = raw * (weights > 0)[..., None]
                norm = norms[name][kind]
                predicted, control = by_student[name][kind].float(), by_untrained[name][kind].float()
                standardised = norm(raw)
                pairs = (
                    (norm.restore(predicted), raw),
                    (norm.restore(control), raw),
                    (norm.mean.expand_as(raw), raw),
                    (predicted, standardised),
                    (control, standardised),
                )
                tokens = torch.tensor([raw[..., 0].numel()])
                sums[name, kind] = sums.get((name, kind), 0) + torch.cat([cosine_sums(pairs, raw), tokens])
    return [
        HeldOutScore(name, kind, *(total[:5] / total[5]).tolist(), tokens=float(total[5] / total[6]), photos=count)
        for (name, kind), total in sums.items()
    ]


def cosine_sums(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], raw: torch.Tensor) -> torch.Tensor:
    """(pairs + 1) float64 on the CPU: each pair's cosines, summed over the tokens where `raw` (..., D) is not zero, and
    the number of these tokens. pairs: tokens (..., D) each."""
    is_defined = raw.norm(dim=-1) > MIN_TOKEN_NORM
    sums = [F.cosine_similarity(a.float(), b.float(), dim=-1)[is_defined].double().sum() for a, b in pairs]
    return torch.stack([*sums, is_defined.sum().double()]).cpu()
