"""One cloud of all views' point maps, each place once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dune_cli import console
from dune_cli.errors import JobFailed
from dune_cli.geometry.cameras import project
from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.io.meshes import Frustum
from dune_cli.mvs.consistency import normals_of_depth
from dune_cli.sfm.scene import FusedCloud, PointMap

MAX_DEPTH_ERROR = 0.01  # of the depth: nearer points of two views are one
MIN_COSINE = 0.5  # of their normals
SAMPLES, MIN_OVERLAP = 400, 0.02


@dataclass(frozen=True)
class MapView:
    """A point map with what fusion and surfaces need of it: `depth` (h, w) z, NaN where not valid, `normals` (h, w, 3)
    in the world, `K` in the map's pixels."""

    map: PointMap
    depth: np.ndarray
    normals: np.ndarray
    K: np.ndarray
    world_from_cam: np.ndarray

    @property
    def footprint(self) -> float:
        """The median size of a pixel on the surface."""
        focal_px = np.sqrt(abs(np.linalg.det(self.K[:2, :2])))
        return float(np.nanmedian(self.depth) / focal_px)


def map_views(point_maps: Sequence[PointMap | None], cameras: Sequence[Frustum]) -> list[MapView]:
    """The maps with valid points. ValueError unless every map, None too, has its camera; JobFailed for none."""
    if len(point_maps) != len(cameras):
        raise ValueError(f"{len(point_maps)} point maps, {len(cameras)} cameras")
    views = []
    for point_map, camera in zip(point_maps, cameras):
        if point_map is None or not point_map.valid.any():
            continue
        depth = transform_points(inverse(camera.world_from_cam), point_map.points_world)[..., 2]
        depth = np.where(point_map.valid, depth, np.nan)
        K = np.linalg.inv(point_map.image_from_map) @ camera.K
        normals = normals_of_depth(depth, K) @ camera.world_from_cam[:3, :3].T
        views.append(MapView(point_map, depth.astype(np.float32), normals.astype(np.float32), K, camera.world_from_cam))
    if not views:
        raise JobFailed("no view has a dense point that others confirm: there is nothing to fuse")
    return views


def fuse(point_maps: Sequence[PointMap | None], cameras: Sequence[Frustum]) -> FusedCloud:
    """The points of all maps, those that several views see once: at the place and in the detail of the view that sees
    them finest, with the mean colour and normal, weighted by confidence, and the highest confidence.

    `cameras` have K in the photos' pixels, as `Scene.frusta` gives them. Points without a normal (too lonely) are left
    out. The order of the views does not matter but for the order of the points. Raises JobFailed without any point.
    Memory: about 40 bytes a pixel of all maps, and 60 a fused point.
    """
    views = map_views(point_maps, cameras)
    views.sort(key=lambda view: (view.footprint, -int(view.map.valid.sum()), *view.world_from_cam[:3, 3]))
    taken = [~(view.map.valid & np.isfinite(view.normals).all(-1)) for view in views]
    partners = [_overlapping(i, views) for i in console.progress(range(len(views)), "overlaps", unit="view")]
    clouds = []
    for i, view in enumerate(console.progress(views, "fusing", unit="view")):
        own = ~taken[i]
        points = view.map.points_world[own].astype(np.float64)
        confidence = view.map.confidence[own].astype(np.float64)
        weight = np.maximum(confidence, 1e-3)
        colors, normals = view.map.colors[own] * weight[:, None], view.normals[own] * weight[:, None]
        for j in partners[i]:
            which, (y, x) = _seen(points, view.normals[own], views[j], taken[j])
            if not len(which):
                continue
            theirs = views[j].map.confidence[y, x].astype(np.float64)
            share = np.maximum(theirs, 1e-3)
            colors[which] += views[j].map.colors[y, x] * share[:, None]
            normals[which] += views[j].normals[y, x] * share[:, None]
            weight[which] += share
            confidence[which] = np.maximum(confidence[which], theirs)
            taken[j][y, x] = True
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        clouds.append((points, np.rint(colors / weight[:, None]).astype(np.uint8), normals, confidence))
        taken[i][:] = True
    columns = [np.concatenate(column) for column in zip(*clouds)]
    if not len(columns[0]):
        raise JobFailed("no view has a dense surface, only lonely points: there is nothing to fuse")
    return FusedCloud(columns[0], columns[1], columns[2].astype(np.float32), columns[3].astype(np.float32))


def _overlapping(index: int, views: Sequence[MapView]) -> list[int]:
    """The later views that see some of this one's surface."""
    view = views[index]
    usable = view.map.valid & np.isfinite(view.normals).all(-1)
    points, normals = view.map.points_world[usable], view.normals[usable]
    some = slice(None, None, max(1, len(points) // SAMPLES))
    points, normals = points[some], normals[some]
    return [
        j
        for j in range(index + 1, len(views))
        if len(points) and len(_seen(points, normals, views[j], ~views[j].map.valid)[0]) >= MIN_OVERLAP * len(points)
    ]


def _seen(
    points: np.ndarray, normals: np.ndarray, other: MapView, taken: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Which points lie on another view's surface where it is not `taken` (h, w), and its pixels (y, x) there."""
    cam = transform_points(inverse(other.world_from_cam), points)
    height, width = taken.shape
    pixels = np.rint(np.nan_to_num(project(cam, other.K), nan=-1, posinf=-1, neginf=-1)).clip(-1, max(height, width))
    x, y = pixels.astype(int).T
    inside = (cam[:, 2] > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    which = np.flatnonzero(inside)
    x, y = x[which], y[which]
    with np.errstate(invalid="ignore"):
        same = ~taken[y, x] & (np.abs(other.depth[y, x] / cam[which, 2] - 1) <= MAX_DEPTH_ERROR)
        same &= (other.normals[y, x] * normals[which]).sum(-1) >= MIN_COSINE
    return which[same], (y[same], x[same])
