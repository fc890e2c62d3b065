"""Masks that leave out the left half of photos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dune_cli.sfm.masks import PhotoMasks
from dune_cli.sfm.scene import Scene


@dataclass(frozen=True)
class LeftHalf:
    """`sizes` (width, height) of the photos that it masks."""

    sizes: Mapping[Path, tuple[int, int]]
    names: tuple[str, ...] = ("left",)
    sources: tuple = ()

    def ignored(self, photo: Path) -> dict[str, np.ndarray]:
        if photo not in self.sizes:
            return {}
        width, height = self.sizes[photo]
        return {"left": np.tile(np.arange(width) < width // 2, (height, 1))}


def left_half(sizes: Mapping[Path, tuple[int, int]]) -> PhotoMasks:
    return PhotoMasks((LeftHalf(sizes),))


def check_left_half_is_empty(scene: Scene) -> None:
    """No dense point shows the left half of its photo, and the right halves have many; the report has no keypoints."""
    for view in scene.views:
        if view.dense is None:
            continue
        width = view.dense.valid.shape[1]
        assert not view.dense.valid[:, : width // 2 - 1].any()
        assert view.dense.valid[:, width // 2 + 1 :].mean() > 0.3
    assert scene.masked is not None and scene.masked.keypoints is None
    assert "masked by left: there are no points there" in scene.notes
