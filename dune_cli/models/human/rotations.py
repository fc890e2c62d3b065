"""Rotations from the 6-D numbers of the two heads, and as rotation vectors."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def from_columns(numbers: torch.Tensor) -> torch.Tensor:
    """(..., 6): the first column of the matrix, then the second (spec 4 A) -> rotations (..., 3, 3)."""
    return _gram_schmidt(numbers[..., :3], numbers[..., 3:])


def from_rows(numbers: torch.Tensor) -> torch.Tensor:
    """(..., 6): the first two columns as a row-major 3 x 2 matrix (spec 4 B) -> rotations (..., 3, 3)."""
    return _gram_schmidt(numbers[..., 0::2], numbers[..., 1::2])


def _gram_schmidt(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    x = F.normalize(first, dim=-1)
    y = F.normalize(second - (x * second).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], -1)


def to_rotvec(rotations: torch.Tensor) -> torch.Tensor:
    """Rotations (..., 3, 3) -> axis times angle (..., 3), the angle in [0, π] radians.

    By way of the unit quaternion whose largest part is computed first, so that it is exact near 0 and near π.
    """
    m = rotations.double()
    trace = m.diagonal(dim1=-2, dim2=-1).sum(-1)
    diagonal = 1 + 2 * m.diagonal(dim1=-2, dim2=-1) - trace[..., None]  # 4x², 4y², 4z²
    squares = torch.cat([(1 + trace)[..., None], diagonal], -1)
    # row k: the quaternion (w, x, y, z) times four times its part k
    w = torch.stack(
        [squares[..., 0], m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]], -1
    )
    sums = m + m.mT
    x = torch.stack([w[..., 1], squares[..., 1], sums[..., 0, 1], sums[..., 0, 2]], -1)
    y = torch.stack([w[..., 2], sums[..., 0, 1], squares[..., 2], sums[..., 1, 2]], -1)
    z = torch.stack([w[..., 3], sums[..., 0, 2], sums[..., 1, 2], squares[..., 3]], -1)
    rows = torch.stack([w, x, y, z], -2)
    largest = squares.argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    quaternion = F.normalize(rows.gather(-2, largest)[..., 0, :], dim=-1)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    sine = quaternion[..., 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, quaternion[..., :1])
    factor = torch.where(sine > 1e-12, angle / sine.clamp_min(1e-12), torch.full_like(sine, 2))
    return (factor * quaternion[..., 1:]).to(rotations.dtype)


def from_rotvec(rotvec: torch.Tensor) -> torch.Tensor:
    """Axis times angle (..., 3) in radians -> rotations (..., 3, 3) (Rodrigues), in the input's type."""
    v = rotvec.double()
    angle = v.norm(dim=-1)[..., None, None]
    zero = torch.zeros_like(v[..., 0])
    x, y, z = v.unbind(-1)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    eye = torch.eye(3, dtype=v.dtype, device=v.device)
    # sin(a)/a and (1 - cos a)/a², finite at 0
    first = torch.sinc(angle / torch.pi)
    second = torch.sinc(angle / (2 * torch.pi)) ** 2 / 2
    return (eye + first * cross + second * (cross @ cross)).to(rotvec.dtype)
