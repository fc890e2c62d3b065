"""Rows of features in safetensors shards, computed a shard at a time, killed or not: what every head's cache shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from dune_cli.console import progress
from dune_cli.errors import JobFailed
from dune_cli.io.cache import check_cached, write_cached
from dune_cli.models.heads import extract

ROWS = 32  # views a shard
OPEN_SHARDS = 512
BATCH = 8  # views a pass of the encoder
LARGEST_HALF = 6e4

Part = TypeVar("Part")


class FeatureShards:
    """The shards of one folder. schema: of their files. fewer: the options, in words, that make them fewer."""

    def __init__(self, folder: Path, schema: str, fewer: str) -> None:
        self.folder, self._schema, self._fewer = folder, schema, fewer
        self.paths: list[Path] = []
        self._opened = lru_cache(maxsize=OPEN_SHARDS)(self._open)

    @property
    def bytes(self) -> int:
        """What the shards take on the disk."""
        return sum(path.stat().st_size for path in self.paths if path.exists())

    def fill(self, parts: Sequence[Part], compute: Callable[[Part], dict[str, np.ndarray]]) -> None:
        """Computes the shards that are missing or damaged, each of its part. JobFailed where one cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, part in progress(list(zip(self.paths, parts, strict=True)), "features", unit="shard"):
            if check_cached(path, self._schema, path.stem):
                continue
            arrays = compute(part)
            try:
                write_cached(path, self._schema, path.stem, arrays)
            except OSError as error:
                raise JobFailed(
                    f"cannot write the features {path} ({error.strerror or error}); make room, or use fewer "
                    f"{self._fewer}, and run the same command again"
                ) from error

    def read(self, places: Iterable[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """What the rows at (shard, place) hold, by name, stacked. JobFailed for a shard that cannot be read."""
        parts: dict[str, list[torch.Tensor]] = {}
        for shard, place in places:
            try:
                file = self._opened(shard)
                for name in file.keys():  # noqa: SIM118
                    parts.setdefault(name, []).append(file.get_slice(name)[place])
            except (OSError, SafetensorError, IndexError) as error:
                raise JobFailed(
                    f"cannot read the features {self.paths[shard]} ({error}), which were whole when the run began; "
                    "run the same command again, which computes them anew"
                ) from error
        return {name: torch.stack(values) for name, values in parts.items()}

    def _open(self, number: int) -> Any:
        return safe_open(self.paths[number], framework="pt")


def encoded(encoder: nn.Module, images: torch.Tensor, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The features of images (B, 3, H, W) uint8 by name, float16."""
    device = next(encoder.parameters()).device
    parts: dict[str, list[np.ndarray]] = {}
    for batch in images.split(BATCH):
        with torch.inference_mode():
            features = extract(encoder, batch.to(device).float() / 255, names)
        for name, value in features.items():
            parts.setdefault(name, []).append(value.clamp(-LARGEST_HALF, LARGEST_HALF).half().cpu().numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}
