"""A small encoder and photos for tests of `dune index` and `dune search`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from dune_cli.models.patch_embed import Tokens
from dune_cli.provenance import Source
from dune_cli.sfm.global_descriptors import DescriptorSettings, GlobalDescriptor

SIZE = 64, 48


class CountingEncoder(nn.Module):
    """Patch tokens are random projections of the patches. `passes`: images that were encoded."""

    patch, width, native_size_px = 16, 32, 64

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.project = nn.Conv2d(3, self.width, self.patch, self.patch)
        self.source = Source(f"counting-{seed}", f"{seed:064x}", "CC0-1.0")
        self.passes = 0

    def forward(self, images: torch.Tensor, norm: bool = True) -> Tokens:
        self.passes += len(images)
        patches = self.project(images - 0.5)
        registers = patches.new_zeros(len(images), 0, self.width)
        return Tokens(patches.mean(dim=(2, 3)), registers, patches.flatten(2).mT, tuple(patches.shape[2:]))


def descriptor(seed: int = 0, pooling: str = "mean", size_px: int = 64) -> GlobalDescriptor:
    encoder = CountingEncoder(seed).eval().requires_grad_(False)
    return GlobalDescriptor(encoder, encoder.source.name, DescriptorSettings(pooling, size_px))


def picture(seed: int) -> np.ndarray:
    """(48, 64, 3) uint8: coarse random colours, other ones for each seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


def write_photos(folder: Path, count: int, first: int = 0) -> list[Path]:
    """`count` PNG files, img0.png and on, each with other colours."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"img{number}.png" for number in range(first, first + count)]
    for number, path in enumerate(paths, first):
        Image.fromarray(picture(number)).save(path)
    return paths
