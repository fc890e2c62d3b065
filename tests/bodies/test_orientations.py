from __future__ import annotations

import pytest
import torch

from dune_cli.bodies.kinematics import nearest_rotation, turn_y_onto
from support.body_rotations import random_rotations

Y = torch.tensor([0.0, 1, 0], dtype=torch.float64)


def _directions() -> torch.Tensor:
    random = torch.randn(200, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    near_down = torch.tensor([[1e-6, -1, 0], [0, -3, 2e-5], [-1e-7, -1, 1e-7], [1e-9, -0.1, 1e-9]], dtype=torch.float64)
    near_up = torch.tensor([[0, 2.0, 0], [1e-9, 1, 0]], dtype=torch.float64)
    return torch.cat([random, near_down, near_up])


def test_turn_y_onto_is_the_smallest_turn() -> None:
    directions = _directions()
    unit = directions / directions.norm(dim=-1, keepdim=True)
    rotations = turn_y_onto(directions)
    torch.testing.assert_close(rotations @ Y, unit)
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3, dtype=torch.float64).expand_as(rotations))
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(len(rotations), dtype=torch.float64))
    # Smallest: the turn's angle is the angle to y, its axis lies across both.
    angle_cosine = (rotations.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    torch.testing.assert_close(angle_cosine, unit[:, 1])
    axis = torch.linalg.cross(Y.expand_as(unit), unit)
    torch.testing.assert_close((rotations @ axis[..., None])[..., 0], axis)


def test_turn_y_onto_straight_down_turns_about_x() -> None:
    half_turn = turn_y_onto(torch.tensor([[0.0, -0.3, 0]]))
    torch.testing.assert_close(half_turn, torch.diag(torch.tensor([1.0, -1, -1]))[None])


def test_turn_y_onto_keeps_float32_exact_near_straight_down() -> None:
    directions = torch.tensor([[3e-5, -0.02, 1e-5], [-2e-4, -1, 3e-4]])
    torch.testing.assert_close(turn_y_onto(directions).double(), turn_y_onto(directions.double()), atol=3e-7, rtol=0)


def test_turn_y_onto_has_a_gradient() -> None:
    directions = _directions()[[0, 1, 2, 3, 204]].requires_grad_()
    assert torch.autograd.gradcheck(turn_y_onto, directions)


def test_nearest_rotation_is_the_best_of_many() -> None:
    matrices = torch.randn(20, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert (torch.linalg.det(matrices) < 0).any()
    best = nearest_rotation(matrices)
    torch.testing.assert_close(torch.linalg.det(best), torch.ones(20, dtype=torch.float64))
    score = (best * matrices).sum((-2, -1))
    for spread in (0.01, 0.3, 2.0):
        others = random_rotations(spread, 300, seed=4)
        rivals = torch.einsum("nij,rjk,nik->nr", best, others, matrices)
        assert (rivals <= score[:, None] + 1e-12).all()


@pytest.mark.parametrize("values", [(3.0, 2.0, 1.0), (2.0, 2.0, 0.5), (1.0, 1.0, 1.0), (2.0, 1.0, -0.3)])
def test_nearest_rotation_has_a_gradient_at_equal_and_negative_values(values: tuple[float, float, float]) -> None:
    left, right = random_rotations(1.0, 2, seed=5)
    matrix = (left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right).requires_grad_()
    torch.testing.assert_close(nearest_rotation(matrix), left @ right)
    assert torch.autograd.gradcheck(nearest_rotation, matrix)
