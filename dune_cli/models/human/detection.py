"""What a head says of the people in one image, and how heads are found on the grid of cells."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

MIN_SCORE = 0.3


@dataclass(frozen=True)
class Detections:
    """P people of one image, before any body model is asked (spec 4). Pixels are those of the square network input,
    measured from its top left CORNER (the centre of the first pixel is 0.5), as the published heads count them.

    scores (P,), cells (P, 2) row and column, head_px (P, 2) x and y, head (P, 3) the head joint in the camera's frame
    (metres), rotations (P, R, 3, 3), shape (P, S), expression (P, E) or None, camera (P, 3) the raw numbers of head A
    or None, K (3, 3) the camera that was used, given or not.
    """

    scores: torch.Tensor
    cells: torch.Tensor
    head_px: torch.Tensor
    head: torch.Tensor
    rotations: torch.Tensor
    shape: torch.Tensor
    expression: torch.Tensor | None
    camera: torch.Tensor | None
    K: torch.Tensor

    def __len__(self) -> int:
        return len(self.scores)


def suppress(scores: torch.Tensor) -> torch.Tensor:
    """scores (B, n, n): cells below the maximum of their 3 x 3 neighbourhood become 0."""
    return torch.where(F.max_pool2d(scores[:, None], 3, 1, 1)[:, 0] == scores, scores, 0)


def find_cells(scores: torch.Tensor, min_score: float) -> torch.Tensor:
    """Scores (n, n) of one image after suppression -> cells (P, 2), row-major, of at least `min_score`."""
    return ((scores >= min_score) & (scores > 0)).nonzero()


def head_pixels(cells: torch.Tensor, offsets: torch.Tensor, patch: int) -> torch.Tensor:
    """cells (P, 2) row and column, offsets (P, 2) x and y in cells -> (P, 2) x and y in pixels of the square."""
    return (cells.flip(-1) + 0.5 + offsets) * patch


def unproject(pixels: torch.Tensor, depth: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """pixels (P, 2), depth (P,) along z, K (3, 3) -> points (P, 3): depth · K⁻¹ (x, y, 1)."""
    return depth[:, None] * rays(pixels, K)


def rays(pixels: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """pixels (..., 2), K (3, 3) -> K⁻¹ (x, y, 1), (..., 3), float32."""
    inverse = torch.linalg.inv(K.double()).to(pixels)
    return F.pad(pixels, (0, 1), value=1) @ inverse.T


def camera_of_fov(fov: torch.Tensor | float, size_px: int) -> torch.Tensor:
    """K (3, 3) of a square of `size_px` with the field of view `fov` (radians), principal point size/2."""
    K = torch.eye(3, device=fov.device if isinstance(fov, torch.Tensor) else None)
    K[0, 0] = K[1, 1] = size_px / 2 / (torch.tan(fov / 2) if isinstance(fov, torch.Tensor) else math.tan(fov / 2))
    K[0, 2] = K[1, 2] = size_px / 2
    return K


def check_square(images: torch.Tensor, K: torch.Tensor | None, size_px: int) -> None:
    """ValueError unless images are (B, 3, S, S) of the network's own size and K, where given, (B, 3, 3)."""
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, size_px, size_px):
        raise ValueError(
            f"images must be (B, 3, {size_px}, {size_px}), letterboxed, RGB in [0, 1]; received {tuple(images.shape)}"
        )
    if K is not None and tuple(K.shape) != (len(images), 3, 3):
        raise ValueError(f"K must be ({len(images)}, 3, 3), one camera an image; received {tuple(K.shape)}")
