"""Transformer blocks: what ViT, projectors, CroCo encoder and two-view decoder are made of.

Rotary positions are 2-D, as in MASt3R (docs/models/mast3r.md, "MASt3R's own encoder").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli.models.precision import TrunkLinear


@dataclass(frozen=True)
class Rotation:
    """Angles of a grid's N tokens for heads of d channels: cos and (signed) sin, each (N, 1, d)."""

    cos: torch.Tensor
    sin: torch.Tensor


def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotates x (B, N, heads, d): `x·cos + rot(x)·sin`, rot = (-x2, x1) inside each half of the channels."""
    y = x.to(rotation.cos.dtype)
    swapped = y.unflatten(-1, (2, 2, x.shape[-1] // 4)).flip(-2).flatten(-3)
    return (y * rotation.cos).add_(swapped.mul_(rotation.sin)).to(x.dtype)


class Rope2d:
    """Builds and caches the rotation of each grid size: first half of a head's channels by row, second by column.

    Inside a half of width d/2 the frequencies are base^(-2i/(d/2)), repeated twice.
    """

    def __init__(self, head_width: int, base: float) -> None:
        if head_width % 4:
            raise ValueError(f"2-D RoPE needs a head width that is a multiple of 4, not {head_width}")
        self.head_width, self.base = head_width, base
        self._cache: dict[tuple[int, int, torch.device, torch.dtype], Rotation] = {}

    def __call__(self, grid: tuple[int, int], device: torch.device, dtype: torch.dtype = torch.float32) -> Rotation:
        """The rotation for a grid (h, w), row-major, positions counted from 0."""
        if torch.compiler.is_exporting():  # any grid
            return self._of_grid(grid, device, dtype)
        key = (*grid, device, dtype)
        if key not in self._cache:
            with torch.inference_mode(False):
                self._cache[key] = self._of_grid(grid, device, dtype)
        return self._cache[key]

    def _of_grid(self, grid: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Rotation:
        rows, columns = (torch.arange(n, dtype=torch.float32) for n in grid)
        positions = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
        return self.at(positions, device, dtype)

    def at(self, positions: torch.Tensor, device: torch.device, dtype: torch.dtype = torch.float32) -> Rotation:
        """The rotation for tokens at `positions` (N, 2), (row, column)."""
        half = self.head_width // 2
        frequency = self.base ** (-torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)
        angles = positions.to(device, torch.float32)[:, :, None] * frequency
        sign = torch.tensor([-1.0, 1.0], device=device)[:, None]
        cos = angles.cos()[:, :, None].expand(-1, 2, 2, -1).flatten(1)
        sin = (angles.sin()[:, :, None] * sign).flatten(1)
        return Rotation(cos[:, None].to(dtype), sin[:, None].to(dtype))


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax attention, scale 1/sqrt(d), of q (B, N, heads, d) over k, v (B, M, heads, d) -> (B, N, heads·d)."""
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return y.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Self-attention; `qkv` stacks q, k, v (width rows each), heads contiguous inside each.

    `qk_norm`: a LayerNorm (eps 1e-5, float32) over each head's channels of q and of k, before they are rotated.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = TrunkLinear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads, 1e-5) if qk_norm else None
        self.k_norm = nn.LayerNorm(width // heads, 1e-5) if qk_norm else None
        self.proj = TrunkLinear(width, width)

    def forward(self, x: torch.Tensor, rotation: Rotation | None = None) -> torch.Tensor:
        """x (B, N, D) -> (B, N, D); `rotation` turns q and k by their positions."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q.float()).to(v.dtype), self.k_norm(k.float()).to(v.dtype)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return self.proj(_attend(q, k, v))


class CrossAttention(nn.Module):
    """Attention of one view's tokens over the other view's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projq = TrunkLinear(width, width)
        self.projk = TrunkLinear(width, width)
        self.projv = TrunkLinear(width, width)
        self.proj = TrunkLinear(width, width)

    def forward(self, x: torch.Tensor, y: torch.Tensor, rotation_x: Rotation, rotation_y: Rotation) -> torch.Tensor:
        """Queries from x (B, N, D), keys and values from y (B, M, D); each is rotated by its own view's positions."""
        y = y.to(self.projk.weight.dtype)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (self.projq(x), self.projk(y), self.projv(y)))
        return self.proj(_attend(rotate(q, rotation_x), rotate(k, rotation_y), v))


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = TrunkLinear(width, hidden)
        self.fc2 = TrunkLinear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class GatedMlp(nn.Module):
    """SwiGLU, as DINOv2's ViT-g has it: silu(a)·b with a, b the halves of one linear layer, then a linear layer."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = TrunkLinear(width, 2 * hidden)
        self.w3 = TrunkLinear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(a) * b)


class LayerScale(nn.Module):
    """A learned factor per channel on a block's branch."""

    def __init__(self, width: int, initial: float = 1e-4) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))


def _add(x: torch.Tensor, branch: torch.Tensor, scale: LayerScale | None) -> torch.Tensor:
    """The residual stream x (float32) plus a branch, which may be in the trunk's type."""
    return x + branch if scale is None else torch.addcmul(x, branch.to(x.dtype), scale.gamma)


class Block(nn.Module):
    """Pre-norm block: `x + ls1(attn(norm1(x)))`, `x + ls2(mlp(norm2(x)))`; LayerScale is optional.

    docs/models/encoder.md and docs/models/mast3r.md.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        layer_scale: bool,
        eps: float = 1e-6,
        gated: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads, qk_norm)
        self.ls1 = LayerScale(width) if layer_scale else None
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = GatedMlp(width, hidden) if gated else Mlp(width, hidden)
        self.ls2 = LayerScale(width) if layer_scale else None

    def forward(self, x: torch.Tensor, rotation: Rotation | None = None) -> torch.Tensor:
        """x (B, N, D) -> (B, N, D), float32."""
        x = _add(x, self.attn(self.norm1(x), rotation), self.ls1)
        return _add(x, self.mlp(self.norm2(x)), self.ls2)


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention to the other view, MLP; all pre-norm (docs/models/mast3r.md, "Decoder")."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps)
        self.norm_y = nn.LayerNorm(width, eps)
        self.cross_attn = CrossAttention(width, heads)
        self.norm3 = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: torch.Tensor, y: torch.Tensor, rotation_x: Rotation, rotation_y: Rotation) -> torch.Tensor:
        """x (B, N, D) this view's tokens, y (B, M, D) the other's as they were before this layer."""
        x = x + self.attn(self.norm1(x), rotation_x)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(y), rotation_x, rotation_y)
        return x + self.mlp(self.norm3(x))
