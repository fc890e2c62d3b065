"""What the two Multi-HMR heads share (docs/models/multihmr.md): detections, cameras, the person transformer, rotations.

Parameter names are those of the published files, so that their state dicts load as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

MIN_SCORE = 0.3


@dataclass(frozen=True)
class Detections:
    """P people of one image, before a body model is applied (docs/models/multihmr.md).

    Pixels are those of the square network input, measured from its top left CORNER (the centre of the first pixel is
    0.5), as in the published heads.

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


@dataclass(frozen=True)
class PersonTransformerConfig:
    """Sizes: `width` of the people's tokens, `context` of the image's cells, `inner` = heads x channels a head."""

    width: int
    context: int
    inner: int
    heads: int
    hidden: int
    depth: int


class PersonTransformer(nn.Module):
    """Pre-norm layers of self-attention, cross-attention and MLP, each added to its input; no norm after the last."""

    def __init__(self, config: PersonTransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_layer(config) for _ in range(config.depth))

    def forward(self, people: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """people (P, D) and context (N, C) of ONE image -> (P, D). The context is taken as it is, without a norm."""
        for attend, look, think in self.layers:
            people = people + attend(people)
            people = people + look(people, context)
            people = people + think(people)
        return people


def mlp(inputs: int, hidden: int, out: int) -> nn.Sequential:
    """Linear, ReLU, linear: every `mlp_*` of the heads."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, out))


def _layer(config: PersonTransformerConfig) -> nn.ModuleList:
    width = config.width
    return nn.ModuleList(
        [
            PreNorm(width, PersonSelfAttention(width, config.inner, config.heads)),
            PreNorm(width, PersonCrossAttention(width, config.context, config.inner, config.heads)),
            PreNorm(width, FeedForward(width, config.hidden)),
        ]
    )


class PreNorm(nn.Module):
    """LayerNorm of the first argument, then `fn`."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, 1e-5)
        self.fn = fn

    def forward(self, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """x (P, D), and what else `fn` takes."""
        return self.fn(self.norm(x), *others)


class PersonSelfAttention(nn.Module):
    """Attention among the people of one image; heads are contiguous channels, q, k, v in this order, no bias."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (P, D) -> (P, D)."""
        return self.to_out(_attend(*self.to_qkv(x).chunk(3, -1), self.heads))


class PersonCrossAttention(nn.Module):
    """Attention of people to the cells of their image."""

    def __init__(self, width: int, context: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(context, 2 * inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, width))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """x (P, D), context (N, C) -> (P, D)."""
        return self.to_out(_attend(self.to_q(x), *self.to_kv(context).chunk(2, -1), self.heads))


class FeedForward(nn.Module):
    """Linear, exact GELU, linear; the published list has dropouts between, hence the name `net.3`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (P, D) -> (P, D)."""
        return self.net(x)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """Softmax attention of q (P, heads·d) over k, v (N, heads·d), scale 1/sqrt(d)."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(0, 1) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)


def from_columns(numbers: torch.Tensor) -> torch.Tensor:
    """(..., 6), the first column of the matrix, then the second -> rotations (..., 3, 3) (docs/models/multihmr.md,
    A)."""
    return _gram_schmidt(numbers[..., :3], numbers[..., 3:])


def from_rows(numbers: torch.Tensor) -> torch.Tensor:
    """(..., 6), the first two columns as a row-major 3 x 2 matrix -> rotations (..., 3, 3) (docs/models/multihmr.md,
    B)."""
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
