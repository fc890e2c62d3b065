"""Asking the teachers: in autocast, in pieces that fit, in float32."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dune_cli.teachers.base import Teacher

Answers = dict[str, dict[str, torch.Tensor]]


def teach(
    teachers: Mapping[str, Teacher],
    images: torch.Tensor,
    grid: tuple[int, int],
    amp: torch.dtype,
    at_once: int | None = None,
) -> Answers:
    """Every teacher's tokens of images (B, 3, H, W) on `grid`, float32, `at_once` images at a time (None: all)."""
    pieces = images.split(at_once or len(images))
    with autocast(images.device, amp):
        answers = [{name: teacher(piece, grid) for name, teacher in teachers.items()} for piece in pieces]
    if len(answers) == 1:
        return answers[0]
    return {
        name: {kind: torch.cat([answer[name][kind] for answer in answers]) for kind in kinds}
        for name, kinds in answers[0].items()
    }


def autocast(device: torch.device, amp: torch.dtype) -> torch.autocast:
    """Autocast to `amp`; none for float32."""
    return torch.autocast(device.type, amp, enabled=amp != torch.float32)
