"""A two-view model that knows N cameras of the synthetic scene, told apart by the brightness of a photo's corner."""

from __future__ import annotations

import numpy as np
import torch

from dune_cli.models.mast3r import TwoViewOutput, ViewFeatures
from support.exact_two_view import ExactTwoView

_maps: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}


class ExactManyViews(ExactTwoView):
    """As `ExactTwoView`, for any number of views, whose photos' first pixel is (40 + 20 * view) grey: `marked` does
    that. Each pair's maps are multiplied by a factor of their own within exp(+-`scales`); the pairs in `false` tell
    the second view from a wrong place."""

    def __init__(self, *arguments, scales: float = 0.0, false: tuple[tuple[int, int], ...] = (), **settings) -> None:
        super().__init__(*arguments, **settings)
        self.scales, self.false = scales, false
        self.seen: list[int] = []

    def encode(self, images: torch.Tensor) -> ViewFeatures:
        self.encoded += 1
        _, _, height, width = images.shape
        view = round((float(images[0, :, :2, :2].mean()) * 255 - 40) / 20)
        self.seen.append(view)
        grid = height // self.patch, width // self.patch
        tokens = torch.full((1, grid[0] * grid[1], 4), float(view))
        return ViewFeatures(tokens, grid)

    def decode(self, view1: ViewFeatures, view2: ViewFeatures, descriptors: bool = True, points: bool = True):
        assert points and not descriptors
        self.decoded += 1
        i, j = (round(float(view.tokens[0, 0, 0])) for view in (view1, view2))
        rng = np.random.default_rng([i, j])
        factor = float(np.exp(rng.uniform(-self.scales, self.scales)))
        (points1, sure1), (points2, sure2) = (
            self._map(_Size(v, *(side * self.patch for side in view.grid)), i) for v, view in ((i, view1), (j, view2))
        )
        if (i, j) in self.false:
            points2 = points2.flip(-1) + 1
        return TwoViewOutput(factor * points1, factor * points2, sure1, sure2, None, None, None, None)

    def _map(self, features, frame: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rendered once for all models that tell the same."""
        told = (self.noise, self.wrong, self.honest, self.size, repr(self.K), repr(self.world_from_cam))
        key = (features.view, features.height, features.width, frame, *told)
        if key not in _maps:
            _maps[key] = super()._map(features, frame)
        return _maps[key]


class _Size:
    def __init__(self, view: int, height: int, width: int) -> None:
        self.view, self.height, self.width = view, height, width


def marked(rgb: np.ndarray, view: int) -> np.ndarray:
    """The photo with the corner that tells which view it is."""
    marked = rgb.copy()
    marked[:16, :16] = 40 + 20 * view
    return marked
