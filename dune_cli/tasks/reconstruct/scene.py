"""What a reconstruction is: cameras, dense point maps, sparse points, and how good they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dune_cli.geometry.cameras import transform_pixels
from dune_cli.geometry.grid_mesh import grid_triangles, used_vertices
from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.io.mesh import Frustum, Mesh
from dune_cli.provenance import Source


@dataclass(frozen=True)
class PointMap:
    """A view's dense points on its own pixel grid (h, w), which may be coarser than the photo.

    `points_world` (h, w, 3), `confidence` (h, w), `valid` (h, w) bool (the others are NaN or below the confidence that
    was asked for), `colors` (h, w, 3) uint8, `image_from_map` (3, 3) the photo's pixels from the map's.
    """

    points_world: np.ndarray
    confidence: np.ndarray
    valid: np.ndarray
    colors: np.ndarray
    image_from_map: np.ndarray


@dataclass(frozen=True)
class View:
    """A photo's camera: `K` (3, 3) in pixels of the photo, `focal_source` given | exif | estimated | default,
    `world_from_cam` (4, 4), and its dense points where there are any."""

    image: str
    width: int
    height: int
    K: np.ndarray
    focal_source: str
    world_from_cam: np.ndarray
    registered: bool = True
    dense: PointMap | None = None

    @property
    def depth(self) -> np.ndarray | None:
        """(h, w) z of the dense points in this camera, NaN where not valid."""
        if self.dense is None:
            return None
        z = transform_points(inverse(self.world_from_cam), self.dense.points_world)[..., 2]
        return np.where(self.dense.valid, z, np.nan)


@dataclass(frozen=True)
class SparsePoints:
    """Triangulated matches: `points_world` (M, 3), `colors` (M, 3) uint8, `confidence` (M,) in [0, 1], and `pixels`,
    for each view the (M, 2) places where it sees them."""

    points_world: np.ndarray
    colors: np.ndarray
    confidence: np.ndarray
    pixels: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Pair:
    """How two views were joined: correspondences, those that agree with the pose, and that share as confidence."""

    images: tuple[int, int]
    matches: int
    inliers: int

    @property
    def confidence(self) -> float:
        return self.inliers / max(self.matches, 1)


@dataclass(frozen=True)
class Scene:
    """The result of `dune reconstruct`. The world is camera 0. `scale` is "metric" (metres) or "arbitrary", and then
    `scale_note` says why. `parallax_deg`: median angle at which the points see both cameras. `notes`: what the user
    should know about how it went. `sources`: the matcher or model, with its licence."""

    method: str
    views: tuple[View, ...]
    pairs: tuple[Pair, ...]
    sparse: SparsePoints | None
    scale: str
    scale_note: str | None
    reprojection_error_px: float
    parallax_deg: float
    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_dense(self) -> bool:
        return any(view.dense is not None for view in self.views)

    @property
    def coverage(self) -> float:
        """The share of the dense maps' pixels that have a point; 0 without dense maps."""
        valid = [view.dense.valid for view in self.views if view.dense is not None]
        return float(np.concatenate([v.ravel() for v in valid]).mean()) if valid else 0.0

    def cloud(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points (M, 3), colours (M, 3) uint8, confidence (M,): the dense ones, and the matched ones where the first
        view has no dense point."""
        parts = [
            (m.points_world[m.valid], m.colors[m.valid], m.confidence[m.valid])
            for m in (view.dense for view in self.views)
            if m is not None
        ]
        if self.sparse is not None:
            new = ~_covered(self.views[0].dense, self.sparse.pixels[0])
            parts.append((self.sparse.points_world[new], self.sparse.colors[new], self.sparse.confidence[new]))
        points, colors, confidence = (np.concatenate(column) for column in zip(*parts))
        return points, colors, confidence

    def meshes(self) -> list[Mesh]:
        """A mesh for each dense map, cut at depth edges; without the ones that have no triangle."""
        meshes = []
        for view in self.views:
            depth = view.depth
            if view.dense is None or depth is None:
                continue
            kept, faces = used_vertices(grid_triangles(depth, view.dense.valid))
            if len(faces):
                points, colors = view.dense.points_world.reshape(-1, 3)[kept], view.dense.colors.reshape(-1, 3)[kept]
                meshes.append(Mesh(points, faces, colors, view.image))
        return meshes

    def frusta(self) -> list[Frustum]:
        """The registered cameras."""
        return [
            Frustum(view.K, view.world_from_cam, view.width, view.height, view.image)
            for view in self.views
            if view.registered
        ]

    def scaled(self, factor: float, scale: str, scale_note: str | None) -> Scene:
        """The same scene with all lengths times `factor`."""
        views = []
        for view in self.views:
            pose = view.world_from_cam.copy()
            pose[:3, 3] *= factor
            dense = view.dense and replace(view.dense, points_world=view.dense.points_world * factor)
            views.append(replace(view, world_from_cam=pose, dense=dense))
        sparse = self.sparse and replace(self.sparse, points_world=self.sparse.points_world * factor)
        return replace(self, views=tuple(views), sparse=sparse, scale=scale, scale_note=scale_note)

    def baseline(self) -> float:
        """The distance of the first two cameras."""
        return float(np.linalg.norm(self.views[1].world_from_cam[:3, 3] - self.views[0].world_from_cam[:3, 3]))


def _covered(dense: PointMap | None, pixels: np.ndarray) -> np.ndarray:
    """(M,) bool: the photo's `pixels` (M, 2) that have a dense point."""
    if dense is None:
        return np.zeros(len(pixels), dtype=bool)
    height, width = dense.valid.shape
    x, y = np.rint(transform_pixels(np.linalg.inv(dense.image_from_map), pixels)).astype(int).T
    return dense.valid[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
