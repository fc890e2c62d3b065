"""A two-view model that returns the exact point maps of the synthetic scene, so that laws can be tested end to end."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from dune_cli.geometry import cameras, poses
from dune_cli.io.preprocess import prepare
from dune_cli.provenance import Source
from support import synthetic_scenes


class ExactTwoView(torch.nn.Module):
    """Knows both true cameras (K, world_from_cam) and returns what a perfect network would for their photos.

    `noise` is the relative error of every point, `wrong` the share of points far off, which have confidence 1 where
    `honest`; all other points have confidence 3.
    """

    patch, size, crop_square_to_4_3 = 16, 256, False
    source = Source("exact", "ab" * 32, "none")

    def __init__(
        self,
        K: list[np.ndarray],
        world_from_cam: list[np.ndarray],
        sizes: list[tuple[int, int]],
        noise: float = 0.0,
        wrong: float = 0.0,
        honest: bool = False,
    ) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.K, self.world_from_cam = K, world_from_cam
        self.noise, self.wrong, self.honest = noise, wrong, honest
        self.sizes, self.encoded, self.decoded = sizes, 0, 0

    def encode(self, images: torch.Tensor) -> SimpleNamespace:
        assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1
        self.encoded += 1
        return SimpleNamespace(view=(self.encoded - 1) % 2, height=images.shape[2], width=images.shape[3])

    def decode(self, view1, view2, descriptors: bool = True, points: bool = True) -> SimpleNamespace:
        assert points and not descriptors
        self.decoded += 1
        (points1, confidence1), (points2, confidence2) = (self._map(view, view1.view) for view in (view1, view2))
        return SimpleNamespace(points1=points1, points2=points2, confidence1=confidence1, confidence2=confidence2)

    def _map(self, features: SimpleNamespace, frame: int) -> tuple[torch.Tensor, torch.Tensor]:
        view, height, width = features.view, features.height, features.width
        blank = np.zeros((self.sizes[view][1], self.sizes[view][0], 3), np.uint8)
        K = prepare(blank, self.size, self.patch).network_from_image @ self.K[view]
        depth = synthetic_scenes.render(K, self.world_from_cam[view], width, height, samples=1)[1]
        points = cameras.backproject(cameras.pixel_grid(height, width), np.nan_to_num(depth, nan=9.0), K)
        points = poses.transform_points(
            poses.compose(poses.inverse(self.world_from_cam[frame]), self.world_from_cam[view]), points
        )
        rng = np.random.default_rng(view)
        points = points + self.noise * np.linalg.norm(points, axis=-1, keepdims=True) * rng.normal(size=points.shape)
        far_off = rng.random(points.shape[:2]) < self.wrong
        points[far_off] += rng.uniform(-2, 2, (far_off.sum(), 3))
        confidence = np.where(far_off & self.honest, 1.0, 3.0)
        return tuple(torch.from_numpy(a.astype(np.float32))[None] for a in (points, confidence))  # type: ignore
