"""Held-out scores: a perfect student, a constant one, and tokens of which there is nothing to say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dune_cli.provenance import Source
from dune_cli.teachers.teacher import PATCH, Teacher
from dune_cli.training.common.dataset import open_dataset
from dune_cli.training.distill.held_out import held_out_scores
from dune_cli.training.distill.teacher_norm import new_teacher_norms

GRID = (2, 2)


class Bright(Teacher):
    """Two channels of the mean colour of each quarter; nothing where it is dark."""

    name = "bright"
    widths = {PATCH: 2}  # noqa: RUF012 (a constant of the class)
    source = Source("bright")

    def tokens(self, images: torch.Tensor, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        cells = nn.functional.adaptive_avg_pool2d(images, grid).flatten(2).transpose(1, 2)
        return {PATCH: cells[..., :2] * (cells.mean(-1, keepdim=True) > 0.4)}


class Says(nn.Module):
    def __init__(self, teacher: Teacher, norms: nn.ModuleDict, right: bool) -> None:
        super().__init__()
        self.teacher, self.norms, self.right = [teacher], norms, right

    def forward(self, images: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
        raw = self.teacher[0](images, GRID)[PATCH]
        norm = self.norms["bright"][PATCH]
        return {"bright": {PATCH: norm(raw) if self.right else norm(norm.mean.expand_as(raw))}}


def test_zero_tokens_are_left_out(photos: Path) -> None:
    teacher = Bright()
    norms = new_teacher_norms({"bright": teacher.widths}, "mean-std").eval()
    norms["bright"][PATCH].mean.copy_(torch.tensor([0.5, 0.1]))
    norms["bright"][PATCH].std.copy_(torch.tensor([0.1, 0.3]))
    data = open_dataset([str(photos)], ["bright"], 0.5)
    perfect, constant = (Says(teacher, norms, right) for right in (True, False))
    (score,) = held_out_scores(perfect, constant, {"bright": teacher}, norms, data, 32, GRID, torch.device("cpu"))
    assert 0 < score.tokens < 1
    assert score.student == pytest.approx(1, abs=1e-5) and score.standardised == pytest.approx(1, abs=1e-5)
    assert score.untrained == pytest.approx(score.mean_feature, abs=1e-5)
    assert score.mean_feature < 0.99 and abs(score.untrained_standardised) < 1e-5
    (dark,) = held_out_scores(perfect, constant, {"bright": Dark()}, norms, data, 32, GRID, torch.device("cpu"))
    assert dark.tokens == 0 and dark.student != dark.student  # NaN


class Dark(Bright):
    def tokens(self, images: torch.Tensor, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {PATCH: torch.zeros(len(images), 4, 2)}
