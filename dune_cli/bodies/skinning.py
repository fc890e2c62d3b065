"""Forward kinematics and linear blend skinning, batched by depth in the skeleton."""

from __future__ import annotations

from collections.abc import Sequence

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
