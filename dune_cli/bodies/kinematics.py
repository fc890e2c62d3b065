"""Forward kinematics and linear blend skinning, batched by depth in the skeleton; orientations of bones at rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def levels(parents: Sequence[int]) -> list[list[int]]:
    """Joints by their depth below the root (joint 0). ValueError unless every parent comes before its child."""
    depth = [0]
    for joint, parent in enumerate(parents[1:], start=1):
        if not 0 <= parent < joint:
            raise ValueError(f"joint {joint} has parent {parent}; parents must come before their children")
        depth.append(depth[parent] + 1)
    return [[joint for joint, d in enumerate(depth) if d == level] for level in range(max(depth) + 1)]


def chain(rotations: Tensor, rest_joints: Tensor, root: Tensor, parents: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Accumulates rotations along the skeleton.

    rotations (B, J, 3, 3): each joint's rotation relative to its parent's, in the axes of the rest pose.
    rest_joints (B, J, 3): joints at rest. root (B, 3): where the root joint goes.
    Returns the accumulated rotations (B, J, 3, 3), which take rest directions to posed ones, and the joints (B, J, 3).
    """
    by_depth = levels(parents)
    place = {joint: i for level in by_depth for i, joint in enumerate(level)}
    offsets = rest_joints - rest_joints[:, [max(parent, 0) for parent in parents]]
    turned, placed = [rotations[:, :1]], [root[:, None]]
    for level in by_depth[1:]:
        above = [place[parents[joint]] for joint in level]
        turned_above, placed_above = turned[-1][:, above], placed[-1][:, above]
        placed.append(placed_above + (turned_above @ offsets[:, level, :, None])[..., 0])
        turned.append(turned_above @ rotations[:, level])
    order = torch.tensor([joint for level in by_depth for joint in level], device=rotations.device).argsort()
    return torch.cat(turned, 1)[:, order], torch.cat(placed, 1)[:, order]


def skin(rest_vertices: Tensor, rest_joints: Tensor, turned: Tensor, placed: Tensor, weights: Tensor) -> Tensor:
    """Linear blend skinning: vertex = sum over joints of weight * (turned @ (rest_vertex - rest_joint) + placed).

    rest_vertices (B, V, 3), rest_joints (B, J, 3), `turned` (B, J, 3, 3) and `placed` (B, J, 3) from `chain`,
    weights (V, J) with rows that sum to 1. Returns (B, V, 3).
    """
    shifts = placed - (turned @ rest_joints[..., None])[..., 0]
    moves = torch.cat([turned, shifts[..., None]], -1).flatten(2)
    blended = (weights @ moves).unflatten(-1, (3, 4))
    return (blended[..., :3] @ rest_vertices[..., None])[..., 0] + blended[..., 3]


def turn_y_onto(directions: Tensor) -> Tensor:
    """Rotations (..., 3, 3) by the smallest angle that take the y axis onto directions (..., 3) of any length.

    Downwards, where the axis of the half turn is free, it is x (Blender's bones; docs/models/multihmr.md, B).
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
