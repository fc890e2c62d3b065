"""Random rotations for the tests of bodies."""

from __future__ import annotations

import torch
from torch import Tensor


def from_rotvec(vectors: Tensor) -> Tensor:
    """Rotation vectors (..., 3) -> (..., 3, 3), by the matrix exponential."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.linalg.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3)))


def random_rotations(spread: float, *size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """(*size, 3, 3), rotation vectors normally distributed with `spread` radians a component."""
    generator = torch.Generator().manual_seed(seed)
    return from_rotvec(spread * torch.randn(*size, 3, generator=generator, dtype=dtype))
