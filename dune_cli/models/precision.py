"""Number types of a network: matrix products of transformer trunks may run in bfloat16, the rest stays float32.

The residual stream, LayerNorms, LayerScale, softmax (inside the attention kernel), convolutions and heads are float32
always; the published encoders were trained under such autocast. With float32 everything is exact.
"""

from __future__ import annotations

import torch
from torch import nn

from dune_cli.models.cpu_products import linear


class TrunkLinear(nn.Linear):
    """A linear layer of a transformer trunk: casts its input to its weights' type and answers in that type."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x.to(self.weight.dtype), self.weight, self.bias)


class AutocastTrunk(nn.Module):
    """A transformer trunk of another library (timm), whose matrix products follow `trunk_dtype` through autocast."""

    trunk_dtype: torch.dtype = torch.float32


def set_trunk_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Casts the matrix-product weights of every transformer trunk inside `module` to `dtype`, once and in place.

    Returns `module`. Casting down loses the lower bits of the weights: load the file again to get float32 back.
    Raises ValueError for a type that is not float32, bfloat16 or float16.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"a trunk runs in float32, bfloat16 or float16, not {dtype}")
    for part in module.modules():
        if isinstance(part, TrunkLinear):
            part.to(dtype)
        elif isinstance(part, AutocastTrunk):
            part.trunk_dtype = dtype
    return module
