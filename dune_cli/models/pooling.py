"""One vector of unit length for an image, out of an encoder's tokens."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from dune_cli.models.patch_embed import Tokens

POOLINGS = ("cls", "mean", "gem")
GEM_POWER = 3.0
GEM_LEAST = 1e-6


def pool(tokens: Tokens, pooling: str) -> torch.Tensor:
    """Tokens of B images -> (B, D) float32, rows of unit length. ValueError for a pooling that is not of POOLINGS.

    cls: the CLS token. mean: the mean of the patch tokens, each of unit length. gem: their generalised mean of power 3
    (F. Radenović, G. Tolias and O. Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", PAMI 2018,
    section 3.2), negative values counting as 0.
    """
    if pooling == "cls":
        return F.normalize(tokens.cls.float(), dim=-1)
    if pooling not in POOLINGS:
        raise ValueError(f"no pooling {pooling!r}; allowed: {', '.join(POOLINGS)}")
    patches = F.normalize(tokens.patches.float(), dim=-1)
    if pooling == "mean":
        return F.normalize(patches.mean(1), dim=-1)
    return F.normalize(patches.clamp(min=GEM_LEAST).pow(GEM_POWER).mean(1).pow(1 / GEM_POWER), dim=-1)
