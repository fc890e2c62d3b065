"""Losses of the heads, one value a photo.

Depth: absolute log ratio, the same without its mean (D. Eigen et al., NIPS 2014: scale-invariant), and gradients of
the log ratio at several steps (Z. Li and N. Snavely, "MegaDepth", CVPR 2018). Disparity of unknown scale and shift is
compared after the best of both (R. Ranftl et al., "MiDaS", TPAMI 2022).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from dune_cli.training.heads.datasets import IGNORED

GRADIENT_STEPS = (1, 2, 4, 8)
ABSOLUTE, INVARIANT, GRADIENT = 0.5, 1.0, 0.5  # weights for depth in metres
DISPARITY, DISPARITY_GRADIENT = 0.3, 0.25
LEAST_SCALE = 1e-3
SMOOTHING = 0.1  # of class labels


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """values, mask (B, H, W) -> means over the mask (B); 0 where it is empty."""
    return (values * mask).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)


def gradient_loss(difference: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, H, W) -> (B): mean absolute change of `difference` over each of GRADIENT_STEPS, down and to the right."""
    total = difference.new_zeros(len(difference))
    for step in GRADIENT_STEPS:
        for dim in (1, 2):
            length = difference.shape[dim] - step
            if length < 1:
                continue
            change = difference.narrow(dim, step, length) - difference.narrow(dim, 0, length)
            total = total + masked_mean(change.abs(), mask.narrow(dim, step, length) * mask.narrow(dim, 0, length))
    return total / len(GRADIENT_STEPS)


def depth_loss(log_depth: torch.Tensor, depth: torch.Tensor, has_scale: torch.Tensor) -> torch.Tensor:
    """Predicted log-depth and true depth in metres (B, H, W), 0 where there is none -> (B).

    has_scale (B) bool: whether the camera, and with it the scale, is known; without it depth is compared up to scale.
    """
    mask = (depth > 0).to(log_depth.dtype)
    difference = log_depth - torch.where(depth > 0, depth, 1).log()
    invariant = difference - masked_mean(difference, mask)[:, None, None]
    absolute = has_scale.to(log_depth.dtype) * masked_mean(difference.abs(), mask)
    return (
        ABSOLUTE * absolute
        + INVARIANT * masked_mean(invariant.abs(), mask)
        + GRADIENT * gradient_loss(difference, mask)
    )


def disparity_loss(log_depth: torch.Tensor, disparity: torch.Tensor) -> torch.Tensor:
    """Predicted log-depth and disparity (B, H, W), 0 where there is none -> (B), in units of the disparity's spread.

    The prediction's inverse depth is scaled (by a positive factor) and shifted to fit best.
    """
    mask = (disparity > 0).to(log_depth.dtype)
    inverse = (-log_depth).exp()
    inverse = inverse - masked_mean(inverse, mask)[:, None, None]
    truth = disparity - masked_mean(disparity, mask)[:, None, None]
    scale = masked_mean(inverse * truth, mask) / masked_mean(inverse.square(), mask).clamp(min=1e-6)
    difference = scale.clamp(min=LEAST_SCALE)[:, None, None] * inverse - truth
    difference = difference / masked_mean(truth.abs(), mask).clamp(min=1e-3)[:, None, None]
    return DISPARITY * (masked_mean(difference.abs(), mask) + DISPARITY_GRADIENT * gradient_loss(difference, mask))


def class_map_loss(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Cross entropy of logits (B, C, H, W) and class numbers (B, H, W), 255 where there is none -> (B)."""
    classes = classes.long()
    values = F.cross_entropy(logits, classes, ignore_index=IGNORED, reduction="none")
    return masked_mean(values, (classes != IGNORED).to(values.dtype))


def distillation_loss(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Cross entropy of logits (B, C, H, W) and a teacher's softmax of the same shape, less its own entropy -> (B)."""
    target, own = teacher.log_softmax(1), logits.log_softmax(1)
    return (target.exp() * (target - own)).sum(1).mean((1, 2))


def class_loss(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Cross entropy of logits (B, C) and class numbers (B), with smoothed labels -> (B)."""
    return F.cross_entropy(logits, classes.long(), label_smoothing=SMOOTHING, reduction="none")
