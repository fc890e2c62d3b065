"""Laws of the rotations, in float64, at ordinary angles, near 0 and near π."""

from __future__ import annotations

import pytest
import torch

from dune_cli.models.multihmr_common import from_columns, from_rows, to_rotvec
from support.body_rotations import from_rotvec

ANGLES = (0.0, 1e-9, 1e-4, 0.5, 2.0, torch.pi - 1e-4, torch.pi - 1e-8)


def _vectors(angle: float) -> torch.Tensor:
    axes = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    axes = torch.cat([axes, torch.eye(3, dtype=torch.float64), -torch.eye(3, dtype=torch.float64)])
    return torch.nn.functional.normalize(axes, dim=-1) * angle


@pytest.mark.parametrize("angle", ANGLES)
def test_rotvec_and_back(angle: float) -> None:
    vectors = _vectors(angle)
    rotations = from_rotvec(vectors)
    eye = torch.eye(3, dtype=torch.float64).expand_as(rotations)
    assert torch.allclose(rotations @ rotations.mT, eye, atol=1e-12)
    assert torch.allclose(torch.linalg.det(rotations), eye[:, 0, 0], atol=1e-12)
    assert torch.allclose(rotations @ vectors[..., None], vectors[..., None], atol=1e-12)
    assert torch.allclose(to_rotvec(rotations), vectors, atol=1e-7 if angle > 3 else 1e-12)


def test_a_quarter_turn_about_z_takes_x_to_y() -> None:
    quarter = from_rotvec(torch.tensor([0.0, 0, torch.pi / 2]))
    assert torch.allclose(quarter @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6)


def test_half_turns_have_the_angle_pi() -> None:
    half = torch.diag(torch.tensor([-1.0, 1, -1]))
    assert torch.allclose(to_rotvec(half).abs(), torch.tensor([0, torch.pi, 0]), atol=1e-6)


def test_the_two_layouts_of_six_numbers() -> None:
    rotations = from_rotvec(_vectors(1.3))
    columns = torch.cat([rotations[..., 0], rotations[..., 1]], -1)
    rows = rotations[..., :2].flatten(-2)
    assert torch.allclose(from_columns(columns), rotations, atol=1e-12)
    assert torch.allclose(from_rows(rows), rotations, atol=1e-12)
    assert not torch.allclose(from_rows(columns), rotations, atol=1e-2)


def test_gram_schmidt_keeps_the_first_direction() -> None:
    numbers = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    rotation = from_columns(numbers)
    first = numbers[:, :3] / numbers[:, :3].norm(dim=-1, keepdim=True)
    assert torch.allclose(rotation[..., 0], first)
    assert (rotation[..., 1] * numbers[:, 3:]).sum(-1).min() > 0
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(50, dtype=torch.float64))
