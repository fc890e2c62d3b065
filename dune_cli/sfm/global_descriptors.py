"""Photos to the vectors of `dune index`: an encoder's tokens, pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dune_cli.errors import JobFailed, UserError
from dune_cli.io.photo_index import IndexEncoder
from dune_cli.io.preprocess import prepare
from dune_cli.models.pooling import POOLINGS, pool

DEFAULT_POOLING = "cls"  # docs/models/encoder.md, "One vector a photo"
DEFAULT_SIZE_PX = 224


@dataclass(frozen=True)
class DescriptorSettings:
    """pooling: of `models.pooling.POOLINGS`. size_px: long side of the network's input. UserError for other values."""

    pooling: str = DEFAULT_POOLING
    size_px: int = DEFAULT_SIZE_PX

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise UserError(f"no pooling {self.pooling!r}; allowed: {', '.join(POOLINGS)}")
        if self.size_px < 1:
            raise UserError(f"a size of {self.size_px} px is impossible; give the long side in pixels, such as 224")


class GlobalDescriptor:
    """An encoder, as `checkpoints.loader.load_encoder` gives it, with the pooling of its tokens. `model`: its name or
    file, as `--model` takes it."""

    def __init__(self, encoder: nn.Module, model: str, settings: DescriptorSettings) -> None:
        self.network = encoder
        source = encoder.source
        self.encoder = IndexEncoder(
            model, source.name, source.sha256 or "", source.licence, settings.pooling, settings.size_px, encoder.width
        )

    def prepare(self, rgb: np.ndarray) -> np.ndarray:
        """A photo (H, W, 3) uint8 as the network's input (3, h, w) float32. UserError where no patch is left."""
        return prepare(rgb, self.encoder.size_px, self.network.patch).image

    def describe(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Inputs of one shape -> (B, D) float32, rows of unit length. JobFailed where one is not finite."""
        with torch.inference_mode():
            tokens = self.network(torch.from_numpy(np.stack(images)))
            vectors = pool(tokens, self.encoder.pooling).cpu().numpy()
        lengths = np.linalg.norm(vectors, axis=1)
        if not (np.abs(lengths - 1) < 1e-3).all():  # also where one is NaN
            raise JobFailed(f"{self.encoder.name} gives features that are not finite or all zero; try --dtype float32")
        return vectors.astype(np.float32, copy=False)
