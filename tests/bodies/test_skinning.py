from __future__ import annotations

import pytest
import torch

from dune_cli.bodies.kinematics import chain, levels, skin
from support.body_rotations import random_rotations

PARENTS = (-1, 0, 0, 1, 3, 2, 1)


def test_levels() -> None:
    assert levels(PARENTS) == [[0], [1, 2], [3, 5, 6], [4]]
    with pytest.raises(ValueError, match="joint 1 has parent 2"):
        levels((-1, 2, 0))
    with pytest.raises(ValueError, match="joint 2 has parent -1"):
        levels((-1, 0, -1))


def test_chain_and_skin_equal_products_of_transforms() -> None:
    generator = torch.Generator().manual_seed(0)
    joints = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    vertices = torch.randn(2, 11, 3, generator=generator, dtype=torch.float64)
    weights = torch.rand(11, 7, generator=generator, dtype=torch.float64)
    weights /= weights.sum(1, keepdim=True)
    root = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    rotations = random_rotations(1.0, 2, 7)
    turned, placed = chain(rotations, joints, root, PARENTS)
    posed = skin(vertices, joints, turned, placed, weights)
    for b in range(2):
        worlds: list[torch.Tensor] = []  # 4x4: rest space to posed space
        for j, parent in enumerate(PARENTS):
            about = torch.eye(4, dtype=torch.float64)
            about[:3, :3] = rotations[b, j]
            goal = root[b] if parent < 0 else joints[b, j]
            about[:3, 3] = goal - rotations[b, j] @ joints[b, j]
            worlds.append(about if parent < 0 else worlds[parent] @ about)
            torch.testing.assert_close(turned[b, j], worlds[j][:3, :3])
            torch.testing.assert_close(placed[b, j], (worlds[j] @ torch.cat([joints[b, j], joints.new_ones(1)]))[:3])
        homogeneous = torch.cat([vertices[b], vertices.new_ones(11, 1)], 1)
        blended = torch.einsum("vj,jik->vik", weights, torch.stack(worlds))
        torch.testing.assert_close(posed[b], (blended @ homogeneous[..., None])[:, :3, 0])
