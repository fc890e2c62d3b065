"""Depth for every view, and which of it the neighbours confirm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dune_cli import console, optional
from dune_cli.geometry.cameras import backproject, pixel_grid, project, resize_transform
from dune_cli.geometry.depth_consistency import DepthView, agreeing, compare, seen_through
from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.geometry.sweep_directions import dominant_normals
from dune_cli.provenance import Run
from dune_cli.runtime import pick_device
from dune_cli.tasks.reconstruct.dense.config import DenseConfig
from dune_cli.tasks.reconstruct.dense.neighbours import (
    ViewPoints,
    inverse_depth_range,
    points_of_views,
    view_neighbours,
)
from dune_cli.tasks.reconstruct.dense.sweep import SweepView, sweep_depth
from dune_cli.tasks.reconstruct.scene import PointMap, SparsePoints

SEEN_THROUGH = 0.05  # of the depth
SPECKLE_SHARE = 2e-4  # of the map; smaller islands of depth are dropped
SPECKLE_STEP = 0.02  # of the inverse depth, between pixels of one island


@dataclass(frozen=True)
class _Reduced:
    """A photo at its working size."""

    rgb: np.ndarray
    K: np.ndarray
    map_from_image: np.ndarray


@dataclass(frozen=True)
class _Depth:
    """A view's raw depth (H, W) and its windows' correlation with the neighbours (H, W) in [0, 1]."""

    view: DepthView
    correlation: np.ndarray


def dense_views(
    rgbs: Iterable[np.ndarray],
    Ks: Sequence[np.ndarray],
    world_from_cams: Sequence[np.ndarray],
    sparse: SparsePoints,
    config: DenseConfig,
    run: Run,
) -> list[PointMap | None]:
    """For each view its confirmed depth as a point map, or None: a pose of NaN, too few sparse points, no neighbour.

    `rgbs` (H, W, 3) uint8 photos without distortion, gone through once; `Ks` (3, 3) in their pixels; `sparse` with
    observations for each of them (only the indices are used). A map's long side is at most `config.effort.side_px`. A
    pixel is valid where at least `min_views` more neighbours' depth confirms it than sees through it; its depth is then
    the mean of theirs and its own, and its confidence rises with their number and the correlation of the windows.
    ValueError for lists of different lengths. Memory: about 90 bytes a pixel of a map for every view, and for the view
    at work planes + 300 numbers of 4 bytes.
    """
    if not len(Ks) == len(world_from_cams) == len(sparse.observations):
        raise ValueError(f"{len(Ks)} Ks, {len(world_from_cams)} poses, {len(sparse.observations)} observations")
    photos = [_reduce(rgb, K, config.effort.side_px) for rgb, K in zip(rgbs, Ks)]
    if len(photos) != len(Ks):
        raise ValueError(f"{len(photos)} photos, {len(Ks)} Ks")
    placed = [np.isfinite(pose).all() for pose in world_from_cams]
    seen = [index if ok else index[:0] for ok, (index, _) in zip(placed, sparse.observations)]
    points = points_of_views(sparse.points_world, seen, world_from_cams)
    neighbours = view_neighbours(sparse.points_world, points, Ks, world_from_cams, config.effort.neighbours)
    with run.stage("dense depth"):
        indices = console.progress(range(len(photos)), "depth", unit="view")
        normals = dominant_normals(sparse.points_world, config.effort.directions)
        depths = [
            _sweep(i, photos, world_from_cams, sparse.points_world, points, neighbours[i], normals, config)
            for i in indices
        ]
    with run.stage("dense consistency"):
        shown = console.progress(depths, "consistency", unit="view")
        return [
            None if depth is None else _confirmed(depth, [depths[j] for j in neighbours[i]], photos[i], config)
            for i, depth in enumerate(shown)
        ]


def _reduce(rgb: np.ndarray, K: np.ndarray, side_px: int) -> _Reduced:
    cv2 = optional.require("cv2", "multi-view stereo")

    height, width = rgb.shape[:2]
    scale = side_px / max(height, width)
    if scale >= 1:
        return _Reduced(rgb, np.asarray(K, dtype=np.float64), np.eye(3))
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    moved = resize_transform(size[0] / width, size[1] / height)
    return _Reduced(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), moved @ K, moved)


def _sweep(
    index: int,
    photos: Sequence[_Reduced],
    poses: Sequence[np.ndarray],
    points_world: np.ndarray,
    points: Sequence[ViewPoints],
    neighbours: Sequence[int],
    normals_world: np.ndarray,
    config: DenseConfig,
) -> _Depth | None:
    span = inverse_depth_range(points[index])
    if span is None or not neighbours:
        return None

    def seen_as(i: int) -> SweepView:
        focal_px = float(np.sqrt(abs(np.linalg.det(photos[i].K[:2, :2]))))
        return SweepView(photos[i].rgb, photos[i].K, poses[i], focal_px / float(np.median(points[i].depth)))

    points_cam = transform_points(inverse(poses[index]), points_world[points[index].index])
    found = sweep_depth(
        seen_as(index),
        [seen_as(i) for i in neighbours],
        span,
        project(points_cam, photos[index].K),
        1 / points_cam[:, 2],
        normals_world @ poses[index][:3, :3],
        config.effort.planes,
        config.effort.rounds,
        pick_device(config.device),
    )
    depth = np.where(found.inverse_depth > 0, 1 / np.maximum(found.inverse_depth, 1e-30), np.nan)
    view = DepthView(depth.astype(np.float32), photos[index].K, poses[index])
    return _Depth(view, (1 - found.cost).astype(np.float32))


def _confirmed(depth: _Depth, others: Sequence[_Depth | None], photo: _Reduced, config: DenseConfig) -> PointMap:
    view = replace(depth.view, depth=depth.view.depth.astype(np.float64))
    total, count = 1 / view.depth, np.zeros(view.depth.shape, dtype=int)
    against = np.zeros_like(count)
    known = [other for other in others if other is not None]
    for other in known:
        agreement = compare(view, other.view)
        good = agreeing(view, agreement, config.max_error_px, config.max_depth_error)
        total += np.where(good, 1 / np.where(good, agreement.depth, 1), 0)
        count += good
        against += seen_through(view, agreement, SEEN_THROUGH)
    needed = min(config.min_views, max(len(known), 1))
    inverse_depth = np.where(count - against >= needed, total / (1 + count), np.nan)
    inverse_depth = without_speckles(inverse_depth)
    valid = np.isfinite(inverse_depth)
    points_cam = backproject(pixel_grid(*valid.shape), 1 / inverse_depth, view.K)
    confidence = np.where(valid, _confidence(count - against, depth.correlation), 0)
    return PointMap(
        transform_points(view.world_from_cam, points_cam).astype(np.float32),
        confidence.astype(np.float32),
        valid,
        photo.rgb,
        np.linalg.inv(photo.map_from_image),
    )


def _confidence(count: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    """About the share of such pixels whose depth is right within 5 %, as measured on indoor photos with sensor depth,
    by the number of neighbours for less those against, and lower where windows hardly correlate."""
    return (1 - 0.4 * 0.5 ** np.maximum(count, 0)) * (0.85 + 0.15 * (correlation / 0.4).clip(0, 1))


def without_speckles(inverse_depth: np.ndarray) -> np.ndarray:
    """(H, W) with islands smaller than a 5,000th of the map made NaN; one surface changes by less than 2 % a pixel."""
    cv2 = optional.require("cv2", "multi-view stereo")

    known = np.isfinite(inverse_depth)
    if not known.any():
        return inverse_depth
    # in logarithms, so that a share of the depth is one difference everywhere
    level = np.log(np.where(known, inverse_depth, 1))
    low, high = level[known].min(), level[known].max()
    unit = max(SPECKLE_STEP / 64, (high - low) / 30_000)
    fixed = np.where(known, np.rint((level - low) / unit), -1000).astype(np.int16)
    cv2.filterSpeckles(fixed, -1000, max(12, round(SPECKLE_SHARE * fixed.size)), max(1, SPECKLE_STEP / unit))
    return np.where(fixed >= 0, inverse_depth, np.nan)
