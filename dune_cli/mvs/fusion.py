"""Fusion of the views' point maps into one cloud without duplicate points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dune_cli import console
from dune_cli.errors import JobFailed
from dune_cli.geometry.cameras import project
from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.io.meshes import Frustum
from dune_cli.mvs.consistency import normals_of_depth
from dune_cli.sfm.scene import FusedCloud, PointMap

MAX_DEPTH_ERROR = 0.01  # of the depth: nearer points of two views are duplicates
MIN_COSINE = 0.5  # of their normals
MAX_FILLED_ERROR = 0.05  # of the depth: nearer points that a network filled in two views are duplicates
OVERLAP_SAMPLES, MIN_OVERLAP = 400, 0.02


@dataclass(frozen=True)
class FusionView:
    """A point map with what fusion and meshing derive from it: `depth` (h, w) z, NaN where not valid, `normals` (h, w,
    3) in the world, `K` (3, 3) in the map's pixels."""

    map: PointMap
    depth: np.ndarray
    normals: np.ndarray
    K: np.ndarray
    world_from_cam: np.ndarray

    @property
    def pixel_size(self) -> float:
        """The median size of a pixel on the surface, in the world's unit."""
        focal_px = np.sqrt(abs(np.linalg.det(self.K[:2, :2])))
        return float(np.nanmedian(self.depth) / focal_px)


def fusion_views(point_maps: Sequence[PointMap | None], cameras: Sequence[Frustum]) -> list[FusionView]:
    """The maps with valid points. ValueError unless every map, None too, has its camera; JobFailed for none."""
    if len(point_maps) != len(cameras):
        raise ValueError(f"{len(point_maps)} point maps, {len(cameras)} cameras")
    views = []
    for point_map, camera in zip(point_maps, cameras):
        if point_map is None or not point_map.valid.any():
            continue
        depth = transform_points(inverse(camera.world_from_cam), point_map.points_world)[..., 2]
        depth = np.where(point_map.valid, depth, np.nan)
        K = point_map.intrinsics(camera.K)
        normals = (normals_of_depth(depth, K) @ camera.world_from_cam[:3, :3].T).astype(np.float32)
        views.append(FusionView(point_map, depth.astype(np.float32), normals, K, camera.world_from_cam))
    if not views:
        raise JobFailed("no view has a dense point that others confirm: there is nothing to fuse")
    return views


def fuse_measured_first(point_maps: Sequence[PointMap | None], cameras: Sequence[Frustum]) -> FusedCloud:
    """As `fuse`, of maps of which a network filled a part: the measured points as if nothing were filled, then the
    filled ones, among which duplicates lie farther apart. No filled point moves or colours a measured one."""
    measured = fuse([one and replace(one, valid=one.measured) for one in point_maps], cameras)
    filled = [one and replace(one, valid=one.valid & ~one.measured) for one in point_maps]
    if not any(one is not None and one.valid.any() for one in filled):
        return measured
    parts = measured, fuse(filled, cameras, MAX_FILLED_ERROR)
    names = ("points_world", "colors", "normals", "confidence")
    return FusedCloud(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def fuse(
    point_maps: Sequence[PointMap | None], cameras: Sequence[Frustum], max_depth_error: float = MAX_DEPTH_ERROR
) -> FusedCloud:
    """The points of all maps, duplicates merged: at the place and in the detail of the view with the smallest pixels
    on the surface, with the mean colour and normal, weighted by confidence, and the highest confidence. Points within
    `max_depth_error`, a share of the depth, are duplicates.

    `cameras` have K in the photos' pixels, as `Scene.frusta` gives them. Points without a normal are left out. The
    order of the views changes only the order of the points. Raises JobFailed without any point. Memory: about 40 bytes
    a pixel of all maps, and 60 a fused point.
    """
    views = fusion_views(point_maps, cameras)
    views.sort(key=lambda view: (view.pixel_size, -int(view.map.valid.sum()), *view.world_from_cam[:3, 3]))
    done = [~(view.map.valid & np.isfinite(view.normals).all(-1)) for view in views]
    overlapping = [
        _overlapping(i, views, max_depth_error) for i in console.progress(range(len(views)), "overlaps", unit="view")
    ]
    clouds = []
    for i, view in enumerate(console.progress(views, "fusing", unit="view")):
        remaining = ~done[i]
        points = view.map.points_world[remaining].astype(np.float64)
        confidence = view.map.confidence[remaining].astype(np.float64)
        weight = np.maximum(confidence, 1e-3)
        colors, normals = view.map.colors[remaining] * weight[:, None], view.normals[remaining] * weight[:, None]
        for j in overlapping[i]:
            index, (y, x) = _duplicates(points, view.normals[remaining], views[j], done[j], max_depth_error)
            if not len(index):
                continue
            other_confidence = views[j].map.confidence[y, x].astype(np.float64)
            other_weight = np.maximum(other_confidence, 1e-3)
            colors[index] += views[j].map.colors[y, x] * other_weight[:, None]
            normals[index] += views[j].normals[y, x] * other_weight[:, None]
            weight[index] += other_weight
            confidence[index] = np.maximum(confidence[index], other_confidence)
            done[j][y, x] = True
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        clouds.append((points, np.rint(colors / weight[:, None]).astype(np.uint8), normals, confidence))
        done[i][:] = True
    points, colors, normals, confidence = (np.concatenate(column) for column in zip(*clouds))
    if not len(points):
        raise JobFailed("no view has a dense surface, only isolated points: there is nothing to fuse")
    return FusedCloud(points, colors, normals.astype(np.float32), confidence.astype(np.float32))


def _overlapping(index: int, views: Sequence[FusionView], max_depth_error: float) -> list[int]:
    """The later views that show some of this view's surface."""
    view = views[index]
    usable = view.map.valid & np.isfinite(view.normals).all(-1)
    points, normals = view.map.points_world[usable], view.normals[usable]
    sample = slice(None, None, max(1, len(points) // OVERLAP_SAMPLES))
    points, normals = points[sample], normals[sample]
    return [
        j
        for j in range(index + 1, len(views))
        if len(points)
        and len(_duplicates(points, normals, views[j], ~views[j].map.valid, max_depth_error)[0])
        >= MIN_OVERLAP * len(points)
    ]


def _duplicates(
    points: np.ndarray, normals: np.ndarray, other: FusionView, done: np.ndarray, max_depth_error: float
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The indices of points that lie on another view's surface where it is not `done` (h, w), and its pixels (y, x)
    there."""
    points_cam = transform_points(inverse(other.world_from_cam), points)
    height, width = done.shape
    pixels = np.nan_to_num(project(points_cam, other.K), nan=-1, posinf=-1, neginf=-1)
    x, y = np.rint(pixels).clip(-1, max(height, width)).astype(int).T
    inside = (points_cam[:, 2] > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = np.flatnonzero(inside)
    x, y = x[index], y[index]
    with np.errstate(invalid="ignore"):
        same = ~done[y, x] & (np.abs(other.depth[y, x] / points_cam[index, 2] - 1) <= max_depth_error)
        same &= (other.normals[y, x] * normals[index]).sum(-1) >= MIN_COSINE
    return index[same], (y[same], x[same])
