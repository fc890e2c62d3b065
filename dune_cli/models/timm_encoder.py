"""A timm ViT as an encoder: any name that timm knows, tokens in this package's form."""

from __future__ import annotations

import torch
from torch import nn

from dune_cli.models.patch_embed import Tokens, grid_of, normalise
from dune_cli.models.precision import AutocastTrunk
from dune_cli.provenance import Source


class TimmEncoder(AutocastTrunk):
    """Wraps a timm ViT; positions are resampled by timm's own policy, normalisation is the network's own.

    Where the network has no CLS token, `cls` is the mean of the patch tokens. Prefix tokens after CLS are registers.
    """

    source = Source("none")
    teachers: tuple[str, ...] = ()

    def __init__(
        self, network: nn.Module, patch: int, native_size_px: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.patch, self.width = patch, network.embed_dim
        self.native_size_px = native_size_px
        self._mean, self._std = tuple(mean), tuple(std)
        self.norm, network.norm = network.norm, nn.Identity()
        self.network = network

    def forward(self, images: torch.Tensor, norm: bool = True) -> Tokens:
        """images (B, 3, H, W) RGB in [0, 1] -> Tokens; `norm=False`: before the final norm."""
        grid = grid_of(images, self.patch)
        where = next(self.network.parameters()).device
        x = normalise(images.to(where, torch.float32), self._mean, self._std)
        with torch.autocast(where.type, self.trunk_dtype, enabled=self.trunk_dtype != torch.float32):
            x = self.network.forward_features(x)
        x = self.norm(x.float()) if norm else x.float()
        first = self.network.num_prefix_tokens
        patches = x[:, first:]
        has_cls = bool(first) and getattr(self.network, "cls_token", None) is not None
        cls = x[:, 0] if has_cls else patches.mean(1)
        return Tokens(cls=cls, registers=x[:, int(has_cls) : first], patches=patches, grid=grid)

    def project(self, images: torch.Tensor, teacher: str) -> Tokens:
        """A timm network has no projectors: always ValueError."""
        raise ValueError(f"a timm network has no projector for {teacher!r}")
