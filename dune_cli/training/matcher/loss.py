"""LightGlue's loss with matchability (Lindenberger et al. 2023, eq. 10), and that of the sub-pixel refinement."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from dune_cli.models.light_glue import Assignment

FORBIDDEN_PX = 12.0  # further from the epipolar line than this, a pair cannot match
FORBIDDEN_WEIGHT = 0.5


def assignment_loss(
    layers: Sequence[Assignment],
    matches: torch.Tensor,
    none0: torch.Tensor,
    none1: torch.Tensor,
    far: torch.Tensor | None,
) -> torch.Tensor:
    """Negative log-likelihood of the labels, matches and unmatchable points weighing alike, averaged over all layers.

    matches (M, 2), none0 (A,), none1 (B,) int64. far (m, n) bool: pairs that the epipolar geometry forbids; the
    last layer pays for the probability that its points give them.
    """
    per_layer = [
        0.5 * _mean(-a.pairs[matches[:, 0], matches[:, 1]]) + 0.25 * (_mean(-a.none0[none0]) + _mean(-a.none1[none1]))
        for a in layers
    ]
    loss = torch.stack(per_layer).mean()
    if far is not None:
        wrong = (layers[-1].pairs.exp() * far).sum(1).clamp(max=0.999)
        loss = loss - FORBIDDEN_WEIGHT * torch.log1p(-wrong).mean()
    return loss


def refinement_loss(
    xy0: torch.Tensor, xy1: torch.Tensor, offset0: torch.Tensor, offset1: torch.Tensor, H: torch.Tensor
) -> torch.Tensor:
    """Distance in image 1, in pixels divided by the local scale, of refined points under a homography H (3, 3).

    All points are (M, 2) pixels; one match weighs as another whatever the scale between the images.
    """
    moved = F.pad(xy0 + offset0, (0, 1), value=1.0) @ H.T
    warped = moved[:, :2] / moved[:, 2:]
    scale = (H.det().abs() / moved[:, 2].abs() ** 3).sqrt().clamp(0.1, 10)
    error = (warped - xy1 - offset1) / scale.clamp(min=1.0)[:, None]
    return _mean(F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=0.25).sum(1))


def _mean(values: torch.Tensor) -> torch.Tensor:
    return values.mean() if len(values) else values.sum()
