"""Orientations of bones at rest: from a bone's direction, or from a correlation of point sets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def turn_y_onto(directions: Tensor) -> Tensor:
    """Rotations (..., 3, 3) by the smallest angle that take the y axis onto directions (..., 3) of any length.

    Downwards, where the axis of the half turn is free, it is x (Blender's bones; spec 4 B).
    """
    unit = directions / directions.norm(dim=-1, keepdim=True)
    x, y, z = unit.unbind(-1)
    side = x * x + z * z
    # (1 - y) / side is 1 / (1 + y) without its cancellation near y = -1.
    down = (y < 0) & (side > 0)
    factor = torch.where(down, (1 - y) / torch.where(down, side, 1), 1 / (1 + y.clamp_min(0)))
    rotation = torch.stack(
        [1 - factor * x * x, x, -factor * x * z, -x, y, -z, -factor * x * z, z, 1 - factor * z * z], -1
    ).unflatten(-1, (3, 3))
    half_turn = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=unit.dtype, device=unit.device))
    return torch.where(((y < 0) & (side == 0))[..., None, None], half_turn, rotation)


class _NearestRotation(torch.autograd.Function):
    """The gradient of torch.linalg.svd blows up at equal singular values; that of the rotation itself does not."""

    @staticmethod
    def forward(ctx: Any, matrices: Tensor) -> Tensor:
        left, values, right_t = torch.linalg.svd(matrices)
        sign = torch.where(torch.linalg.det(left @ right_t) < 0, -1, 1).to(values.dtype)
        left = torch.cat([left[..., :2], left[..., 2:] * sign[..., None, None]], -1)
        values = torch.cat([values[..., :2], values[..., 2:] * sign[..., None]], -1)
        ctx.save_for_backward(left, values, right_t)
        return left @ right_t

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        left, values, right_t = ctx.saved_tensors
        inner = left.mT @ gradient @ right_t.mT
        sums = values[..., :, None] + values[..., None, :]
        # Where two values cancel the nearest rotation is not unique; its diagonal, always zero here, is left alone.
        sums = torch.where(sums.abs() < torch.finfo(sums.dtype).eps, torch.inf, sums)
        return left @ ((inner - inner.mT) / sums) @ right_t


def nearest_rotation(matrices: Tensor) -> Tensor:
    """The rotations (..., 3, 3) nearest to matrices (..., 3, 3): the special orthogonal Procrustes solution.

    Differentiable once, also at equal singular values.
    """
    return _NearestRotation.apply(matrices)
