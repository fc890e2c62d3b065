"""Two-view models that know the ray-cast scene and return what a perfect network would, so that laws can be tested end
to end: point maps of two views or of many, and point maps with descriptors.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from dune_cli.geometry import cameras, poses
from dune_cli.io.preprocess import prepare
from dune_cli.models.mast3r import TwoViewOutput, ViewFeatures
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


class ExactDescriptors(torch.nn.Module):
    """Recognises the photos it was given (rgb, K, world_from_cam), and returns what a perfect network would for them.

    Photos it does not know get points and descriptors of nowhere. `noise`: relative error of every point.
    """

    patch, size, crop_square_to_4_3 = 16, 256, False
    source = Source("exact", "cd" * 32, "none")

    def __init__(self, photos: list[tuple[np.ndarray, np.ndarray, np.ndarray]], noise: float = 0.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.noise, self.known = noise, []
        for rgb, K, world_from_cam in photos:
            prepared = prepare(rgb, self.size, self.patch)
            K_network = prepared.network_from_image @ K
            depth = synthetic_scenes.render(K_network, world_from_cam, prepared.width, prepared.height, samples=1)[1]
            points = cameras.backproject(cameras.pixel_grid(*depth.shape), np.nan_to_num(depth, nan=9.0), K_network)
            self.known.append((prepared.image, poses.transform_points(world_from_cam, points), world_from_cam))
        rng = np.random.default_rng(0)
        self.frequencies, self.phases = rng.normal(0, 6, (3, 48)), rng.uniform(0, 2 * np.pi, 48)

    def encode(self, images: torch.Tensor) -> SimpleNamespace:
        image = images[0].numpy()
        for index, (known, points, pose) in enumerate(self.known):
            if known.shape == image.shape and np.array_equal(known, image):
                return SimpleNamespace(points=points, pose=pose, seed=index)
        seed = int(image.sum())
        nowhere = np.random.default_rng(seed).uniform([-4, -3, 2], [4, 3, 9], (*image.shape[1:], 3))
        return SimpleNamespace(points=nowhere, pose=np.eye(4), seed=seed)

    def decode(
        self, view1: SimpleNamespace, view2: SimpleNamespace, descriptors: bool = True, points: bool = True
    ) -> SimpleNamespace:
        found = {}
        for number, view in ((1, view1), (2, view2)):
            ours = poses.transform_points(poses.inverse(view1.pose), view.points)
            noise = np.random.default_rng(view.seed).normal(size=ours.shape)
            ours = ours + self.noise * np.linalg.norm(ours, axis=-1, keepdims=True) * noise
            described = np.cos(view.points @ self.frequencies + self.phases)
            described /= np.linalg.norm(described, axis=-1, keepdims=True)
            found[f"points{number}"] = _tensor(ours)
            found[f"confidence{number}"] = _tensor(np.full(ours.shape[:2], 3.0))
            found[f"descriptors{number}"] = _tensor(described)
            found[f"descriptor_confidence{number}"] = _tensor(np.full(ours.shape[:2], 2.0))
        return SimpleNamespace(**found)


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))[None]
