"""Matrix products and attention on processors where torch's own are slow.

torch multiplies float32 matrices by MKL, which on AMD's processors uses half the width of AVX-512. oneDNN, which comes
with torch, uses all of it. On one thread of a Zen 5 EPYC a product of 2,048 x 256 by 256 x 768 took 7.5 ms by MKL and
3.4 by oneDNN, 1.8 in bfloat16. Float32 is exact to its rounding in both.

Attention here takes no maximum from its logits before it raises 2 to them (2, as `exp2` took a quarter of `exp`'s time
there) where a bound on them excludes what a float cannot hold. Between two images one product of keys serves both
directions.
"""

from __future__ import annotations

from functools import lru_cache
from math import log

import torch
from torch.nn import functional as F

from dune_cli.runtime import cpu_flags, cpu_has_fast_bfloat16, cpu_vendor

ROWS = 256  # of an attention matrix that are in the cache at once
MAX_LOGIT = 96.0  # of base 2: sums of such powers, and of their products with values, are far from a float's limits


@lru_cache(maxsize=1)
def prefers_onednn() -> bool:
    """True where oneDNN was measured quicker than MKL: AMD's processors with AVX-512."""
    return (
        cpu_vendor() == "AuthenticAMD"
        and "avx512f" in cpu_flags()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@lru_cache(maxsize=1)
def has_quick_bfloat16() -> bool:
    """True where a product in bfloat16 takes half of one in float32, or less: with AMX, and on AMD's processors with
    AVX512-BF16 (measured on Zen 5). Intel's with AVX512-BF16 alone are slower at it than at float32."""
    return cpu_has_fast_bfloat16() or (prefers_onednn() and "avx512_bf16" in cpu_flags())


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (..., K), weight (N, K), bias (N,) -> (..., N): `F.linear`."""
    if not _by_onednn(x):
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def attend(q: torch.Tensor, k: torch.Tensor, values: torch.Tensor, keys: int, out: torch.Tensor) -> None:
    """Writes sum_j 2^(q_i k_j) values_j / sum_j 2^(q_i k_j) over the first `keys` points j to `out` (M, D).

    q (M, D), k (N, D) of one number type; values (D, N), zero beyond `keys`.
    """
    bounded = _is_bounded(q, k)
    for start in range(0, len(q), ROWS):
        block = slice(start, start + ROWS)
        share = linear(q[block], k)
        if bounded:
            share.exp2_()
            out[block] = linear(share, values) / share[:, :keys].sum(1, keepdim=True, dtype=torch.float32)
        else:
            share[:, keys:] = -torch.inf
            out[block] = linear(share.mul_(log(2)).softmax(-1), values)


def attend_both(
    k0: torch.Tensor,
    k1: torch.Tensor,
    values: tuple[torch.Tensor, torch.Tensor],
    counts: tuple[int, int],
    outs: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """`attend` from k0 (M, D) to k1 (N, D) and back, whose logits are the same: `outs` (M, D), (N, D).

    Keys are float32, and the values' type is that of the shares: LightGlue's logits between images go up to 700, where
    a unit of bfloat16 is 4.
    """
    (values0, values1), (count0, count1), (out0, out1) = values, counts, outs
    starts = range(0, count0, ROWS)
    blocks = [linear(k0[start : start + ROWS], k1) for start in starts]
    for block in blocks:  # points that do not count raise no power above 1
        block[:, count1:] = block[:, :count1].amax(1, keepdim=True)
    largest = torch.stack([block[: count0 - start].amax(0) for start, block in zip(starts, blocks)]).amax(0)
    total, message = torch.zeros_like(largest), largest.new_zeros(len(values0), len(k1))
    for start, block in zip(starts, blocks):
        rows = slice(start, start + ROWS)
        share = (block - block.amax(1, keepdim=True)).exp2_()
        out0[rows] = linear(share.to(values1.dtype), values1) / share[:, :count1].sum(1, keepdim=True)
        block[count0 - start :] = -torch.inf
        share = block.sub_(largest).exp2_()
        total += share.sum(0)
        message += linear(values0[:, rows].contiguous(), share.to(values0.dtype).T)
    out1[:] = message.div_(total).T


def _is_bounded(q: torch.Tensor, k: torch.Tensor) -> bool:
    """True where no logit is beyond +-MAX_LOGIT (Cauchy-Schwarz)."""
    longest = [float(torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).max()) for x in (q, k)]
    return longest[0] * longest[1] <= MAX_LOGIT


def _by_onednn(x: torch.Tensor) -> bool:
    """Where it is quicker, and nobody asks for gradients, or for a graph that other libraries have to read."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled() or not prefers_onednn():
        return False
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing())
