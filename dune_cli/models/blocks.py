"""The one transformer block of this package: ViT, projectors, CroCo encoder and two-view decoder are made of it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli.models.precision import TrunkLinear
from dune_cli.models.rope import Rotation, rotate


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax attention, scale 1/sqrt(d), of q (B, N, heads, d) over k, v (B, M, heads, d) -> (B, N, heads·d)."""
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return y.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Self-attention; `qkv` stacks q, k, v (width rows each), heads contiguous inside each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = TrunkLinear(width, 3 * width)
        self.proj = TrunkLinear(width, width)

    def forward(self, x: torch.Tensor, rotation: Rotation | None = None) -> torch.Tensor:
        """x (B, N, D) -> (B, N, D); `rotation` turns q and k by their positions."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
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
        """x (B, N, D) asks, y (B, M, D) answers; each is rotated by its own view's positions."""
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
    """Pre-norm block: `x + ls1(attn(norm1(x)))`, `x + ls2(mlp(norm2(x)))`; LayerScale is optional (spec 1, spec 3)."""

    def __init__(
        self, width: int, heads: int, hidden: int, layer_scale: bool, eps: float = 1e-6, gated: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width) if layer_scale else None
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = GatedMlp(width, hidden) if gated else Mlp(width, hidden)
        self.ls2 = LayerScale(width) if layer_scale else None

    def forward(self, x: torch.Tensor, rotation: Rotation | None = None) -> torch.Tensor:
        """x (B, N, D) -> (B, N, D), float32."""
        x = _add(x, self.attn(self.norm1(x), rotation), self.ls1)
        return _add(x, self.mlp(self.norm2(x)), self.ls2)


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention to the other view, MLP; all pre-norm (spec 3, "Decoder")."""

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
