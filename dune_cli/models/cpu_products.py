"""Float32 matrix products on processors where torch's own are slow.

torch multiplies float32 matrices by MKL, which on AMD's processors uses half the width of AVX-512. oneDNN, which comes
with torch, uses all of it. On one thread of a Zen 5 EPYC a product of 2,048 x 256 by 256 x 768 took 7.5 ms by MKL and
3.4 by oneDNN, and attention among 2,048 points (four heads of 64) 46 and 26 ms. Both are exact to float32's rounding.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn import functional as F

from dune_cli.runtime import cpu_flags, cpu_vendor

ROWS = 512  # of an attention matrix that are in the cache at once


@lru_cache(maxsize=1)
def prefers_onednn() -> bool:
    """True where oneDNN was measured quicker than MKL: AMD's processors with AVX-512."""
    return (
        cpu_vendor() == "AuthenticAMD"
        and "avx512f" in cpu_flags()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (..., K), weight (N, K), bias (N,) -> (..., N): `F.linear`."""
    if not _by_onednn(x):
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keys: int | None = None) -> torch.Tensor:
    """q (heads, M, D), k, v (heads, N, D) -> (M, heads x D); of the keys the first `keys` count."""
    heads, points, width = q.shape
    keys = k.shape[1] if keys is None else keys
    if not _by_onednn(q):
        message = F.scaled_dot_product_attention(q[None], k[None, :, :keys], v[None, :, :keys])[0]
        return message.transpose(0, 1).flatten(1)
    out = q.new_empty(points, heads, width)
    q = q * width**-0.5
    for head in range(heads):
        k_head, v_head = k[head].contiguous(), v[head].T.contiguous()
        for start in range(0, points, ROWS):
            share = linear(q[head, start : start + ROWS], k_head)
            share[:, keys:] = -torch.inf
            out[start : start + ROWS, head] = linear(share.softmax(-1), v_head)
    return out.flatten(1)


def _by_onednn(x: torch.Tensor) -> bool:
    """Where it is quicker, and nobody asks for gradients, or for a graph that other libraries have to read."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled() or not prefers_onednn():
        return False
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing())
