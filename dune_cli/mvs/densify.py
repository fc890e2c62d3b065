"""Multi-view stereo of a scene with cameras and tracks: a depth map of every view by plane sweeping, consistency
between views, one fused cloud, and a surface if asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from scipy import special

from dune_cli import console
from dune_cli.geometry.cameras import backproject, pixel_grid, project
from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.io.meshes import Frustum
from dune_cli.io.photos import read_photo
from dune_cli.io.undistortion import undistort_image
from dune_cli.mvs.consistency import (
    PosedDepth,
    consistent_pixels,
    free_space_violations,
    hidden_points,
    remove_speckles,
    reproject,
)
from dune_cli.mvs.depth_edges import sharpened
from dune_cli.mvs.depth_fill import DepthNetwork, fill_views, surface_maps
from dune_cli.mvs.fusion import fuse, fuse_measured_first
from dune_cli.mvs.meshing import extract_mesh
from dune_cli.mvs.plane_sweep import DepthPrior, SweepImage, sweep_depth
from dune_cli.mvs.quality import DenseConfig
from dune_cli.mvs.sky import SkyNetwork, find_sky
from dune_cli.mvs.stereo import reduce_photo
from dune_cli.mvs.view_selection import (
    VisiblePoints,
    dominant_normals,
    inverse_depth_range,
    select_views,
    visible_points,
)
from dune_cli.provenance import Run
from dune_cli.runtime import available_threads, pick_device
from dune_cli.sfm.masks import PhotoMasks
from dune_cli.sfm.scene import PointMap, Scene, SparsePoints, View

VIOLATION_SHARE = 0.05  # of the depth, beyond which another view's surface contradicts a point
EVIDENCE_OF_VIEW, MAX_COUNTED_VIEWS = 0.675, 4  # logarithms of odds that a depth is within 5 % of the truth
EVIDENCE_OF_VIOLATION, EVIDENCE_OF_HIDING, EVIDENCE_OF_CORRELATION, EVIDENCE_BEFORE = -0.74, -0.361, 0.804, 0.199
SPECKLE_SHARE, SPECKLE_MIN_PIXELS = 8e-4, 12  # of the map: smaller components are removed
SPECKLE_STEP = 0.02  # of the inverse depth, between adjacent pixels of a component
MAX_VIEWS_AT_ONCE = 8
FAR_AWAY = 1e3  # how much farther than the farthest depth the sky is

T = TypeVar("T")


def densify(
    scene: Scene,
    paths: Sequence[Path],
    config: DenseConfig,
    mesh: str | None,
    run: Run,
    min_confidence: float = 0.0,
    masks: PhotoMasks | None = None,
    fill: DepthNetwork | None = None,
) -> Scene:
    """The scene with depth maps, the cloud fused from them and, where `mesh` is tsdf or poisson, a surface.

    `paths`: the photos of the views, read again one by one; `min_confidence` of dense points, in [0, 1]; `masks`: what
    is not used of the photos; `fill`: the network whose depth fills the maps. Where no view has dense points the scene
    stays as it is, and a note says so.
    """
    assert scene.sparse is not None
    views, sky = scene.views, None
    if config.load_sky is not None:
        with run.stage("load"):
            sky = config.load_sky()

    def used_on_map(index: int, shape: tuple[int, ...], image_from_map: np.ndarray) -> np.ndarray:
        return masks.used_on_grid(paths[index], shape, image_from_map, views[index].camera)

    maps = estimate_depth_maps(
        undistorted_photos(views, paths),
        [view.K for view in views],
        [view.world_from_cam for view in views],
        scene.sparse,
        config,
        run,
        None if masks is None else used_on_map,
        sky,
    )
    if sky is not None and any(one is not None and one.sky is not None for one in maps):
        skies = [one.sky.ravel() for one in maps if one is not None and one.sky is not None]
        share = np.concatenate(skies).mean()
        head = sky.sources[0]
        note = f"{share:.0%} of the photos' pixels show sky and have no dense points (by {head.name}, {head.licence})"
        scene = replace(scene, sources=(*scene.sources, *sky.sources), notes=(*scene.notes, note))
    maps = [one and replace(one, valid=one.valid & (one.confidence >= min_confidence)) for one in maps]
    if not any(one is not None and one.valid.any() for one in maps):
        return replace(scene, notes=(*scene.notes, "no dense points: no view's depth is confirmed by another"))
    views = tuple(replace(view, dense=one) for view, one in zip(views, maps))
    if fill is not None:
        with run.stage("fill"):
            maps = fill_views(views, scene.sparse, fill)
            for i, one in enumerate(maps):
                if one is not None and one.filled is not None:
                    unwanted = one.confidence < min_confidence
                    if masks is not None:
                        unwanted |= ~used_on_map(i, one.valid.shape, one.image_from_map)
                    maps[i] = one.without_filled(unwanted)
        views = tuple(replace(view, dense=one) for view, one in zip(views, maps))
        scene = replace(scene, sources=(*scene.sources, *fill.sources))
    return fuse_scene(replace(scene, views=views), mesh, run)


def fuse_scene(scene: Scene, mesh: str | None, run: Run) -> Scene:
    """The scene with the cloud fused from its depth maps and, where `mesh` is tsdf or poisson, a surface."""
    maps = [view.dense for view in scene.views]
    cameras = [Frustum(view.K, view.world_from_cam, view.width, view.height, view.image) for view in scene.views]
    with run.stage("fuse", "fusing"):
        if scene.sparse is not None and scene.filled_share:
            maps = surface_maps(scene.views, scene.sparse)
            cloud = fuse_measured_first(maps, cameras)
        else:
            cloud = fuse(maps, cameras)
    with run.stage("mesh", "meshing"):
        surface = None if mesh is None else extract_mesh(maps, cameras, cloud, mesh)
    return replace(scene, fused=cloud, surface=surface)


def undistorted_photos(views: Sequence[View], paths: Sequence[Path]) -> Iterator[np.ndarray]:
    """The photos without their distortion, one after the other; an empty one for a view without a pose."""
    for view, path in console.progress(zip(views, paths), "reading photos", len(views), "photo"):
        if not view.registered:
            yield np.zeros((view.height, view.width, 3), np.uint8)
            continue
        yield undistort_image(read_photo(path).rgb, view.camera)


@dataclass(frozen=True)
class _ReducedPhoto:
    """A photo at the working size."""

    rgb: np.ndarray
    K: np.ndarray
    reduced_from_image: np.ndarray


@dataclass(frozen=True)
class _RawDepth:
    """A view's depth before the consistency check, the NCC (H, W) of its windows in [0, 1], and (H, W) bool where it
    shows `sky`: there its depth is FAR_AWAY times the farthest one."""

    view: PosedDepth
    correlation: np.ndarray
    sky: np.ndarray | None = None

    def only(self, used: np.ndarray) -> _RawDepth:
        """Without a depth where `used` (H, W) is False."""
        return replace(self, view=replace(self.view, depth=np.where(used, self.view.depth, np.float32(np.nan))))

    def before(self, sky: np.ndarray | None) -> _RawDepth:
        """With the `sky` (H, W) behind all else; as it is for None."""
        if sky is None or not np.isfinite(self.view.depth).any():
            return self
        far = np.float32(FAR_AWAY * np.nanmax(self.view.depth))
        return replace(self, view=replace(self.view, depth=np.where(sky, far, self.view.depth)), sky=sky)


def estimate_depth_maps(
    rgbs: Iterable[np.ndarray],
    Ks: Sequence[np.ndarray],
    world_from_cams: Sequence[np.ndarray],
    sparse: SparsePoints,
    config: DenseConfig,
    run: Run,
    used_on_map: Callable[[int, tuple[int, ...], np.ndarray], np.ndarray] | None = None,
    sky: SkyNetwork | None = None,
) -> list[PointMap | None]:
    """For each view its consistent depth as a point map; None for a pose of NaN, too few sparse points, or no source
    view.

    `rgbs` (H, W, 3) uint8 photos without distortion, iterated once; `Ks` (3, 3) in their pixels; `sparse` with
    observations for each of them, of which only the indices are used. A map's long side is at most
    `config.preset.side_px`. A pixel is valid where a source view is consistent with it and its confidence, an
    `expected_share`, is at least `min_share`. Its depth is the mean of its own and those of the consistent views.
    `used_on_map` of a view's index, a map's shape (H, W) and its `image_from_map` gives (H, W) bool: elsewhere the view
    has no depth, and confirms none. Where the network `sky` finds sky (None: it is not looked for), a view has no depth
    either, and it contradicts the points of others that lie before it. ValueError for lists of different lengths.
    Memory: about 90 bytes a pixel of a map for every view, and for each view at work planes / 16 + 60 numbers of 4
    bytes.
    """
    if not len(Ks) == len(world_from_cams) == len(sparse.observations):
        raise ValueError(f"{len(Ks)} Ks, {len(world_from_cams)} poses, {len(sparse.observations)} observations")
    photos = [_reduced(rgb, K, config.preset.side_px) for rgb, K in zip(rgbs, Ks)]
    if len(photos) != len(Ks):
        raise ValueError(f"{len(photos)} photos, {len(Ks)} Ks")
    posed = [np.isfinite(pose).all() for pose in world_from_cams]
    tracks = [index if ok else index[:0] for ok, (index, _) in zip(posed, sparse.observations)]
    points = visible_points(sparse.points_world, tracks, world_from_cams)
    sources = select_views(sparse.points_world, points, Ks, world_from_cams, config.preset.source_views)
    with run.stage("dense depth"):
        normals = dominant_normals(sparse.points_world, config.preset.directions)

        def raw_depth(i: int) -> _RawDepth | None:
            return _raw_depth(i, photos, world_from_cams, sparse.points_world, points, sources[i], normals, config)

        depths = _of_every_view(raw_depth, len(photos), "depth", config.device)
        if used_on_map is not None:
            depths = [
                one and one.only(used_on_map(i, one.view.depth.shape, np.linalg.inv(photo.reduced_from_image)))
                for i, (one, photo) in enumerate(zip(depths, photos))
            ]
    skies: list[np.ndarray | None] = [None] * len(photos)
    if sky is not None:
        with run.stage("sky"):
            skies = find_sky([depth and photo.rgb for depth, photo in zip(depths, photos)], sky)
    depths = [depth and depth.before(one) for depth, one in zip(depths, skies)]
    with run.stage("dense consistency"):

        def consistent(i: int) -> PointMap | None:
            depth = depths[i]
            return depth and _consistent(depth, [depths[j] for j in sources[i]], photos[i], config)

        return _of_every_view(consistent, len(photos), "consistency", config.device)


def _of_every_view(function: Callable[[int], T], count: int, label: str, device: str) -> list[T]:
    """`function(i)` of every view. On a processor several views are computed at a time, each by one thread: the results
    are the same bytes with any number of threads."""
    if pick_device(device).type != "cpu":
        return [function(i) for i in console.progress(range(count), label, unit="view")]
    threads, before = min(available_threads(), MAX_VIEWS_AT_ONCE), torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        return list(console.progress(pool.map(function, range(count)), label, count, "view"))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _reduced(rgb: np.ndarray, K: np.ndarray, side_px: int) -> _ReducedPhoto:
    reduced, reduced_from_image = reduce_photo(rgb, side_px)
    return _ReducedPhoto(reduced, reduced_from_image @ K, reduced_from_image)


def _raw_depth(
    index: int,
    photos: Sequence[_ReducedPhoto],
    poses: Sequence[np.ndarray],
    points_world: np.ndarray,
    points: Sequence[VisiblePoints],
    sources: Sequence[int],
    normals_world: np.ndarray,
    config: DenseConfig,
) -> _RawDepth | None:
    depth_range = inverse_depth_range(points[index])
    if depth_range is None or not sources:
        return None

    def sweep_image(i: int) -> SweepImage:
        focal_px = float(np.sqrt(abs(np.linalg.det(photos[i].K[:2, :2]))))
        return SweepImage(photos[i].rgb, photos[i].K, poses[i], focal_px / float(np.median(points[i].depth)))

    points_cam = transform_points(inverse(poses[index]), points_world[points[index].index])
    prior = DepthPrior(
        depth_range, project(points_cam, photos[index].K), 1 / points_cam[:, 2], normals_world @ poses[index][:3, :3]
    )
    planes, rounds, device = config.preset.planes, config.preset.rounds, pick_device(config.device)
    swept = sweep_depth(sweep_image(index), [sweep_image(i) for i in sources], prior, planes, rounds, device)
    inverse_depth = sharpened(swept.inverse_depth, photos[index].rgb)
    depth = np.where(inverse_depth > 0, 1 / np.maximum(inverse_depth, 1e-30), np.nan)
    view = PosedDepth(depth.astype(np.float32), photos[index].K, poses[index])
    return _RawDepth(view, (1 - swept.cost).astype(np.float32))


def _consistent(
    depth: _RawDepth, sources: Sequence[_RawDepth | None], photo: _ReducedPhoto, config: DenseConfig
) -> PointMap:
    own = depth if depth.sky is None else depth.only(~depth.sky)
    view = replace(own.view, depth=own.view.depth.astype(np.float64))
    total, count = 1 / view.depth, np.zeros(view.depth.shape, dtype=int)
    violations, hidden = np.zeros_like(count), np.zeros_like(count)
    for source in sources:
        if source is None:
            continue
        reprojection = reproject(view, source.view)
        good = consistent_pixels(view, reprojection, config.max_error_px, config.max_depth_error)
        total += np.where(good, 1 / np.where(good, reprojection.depth, 1), 0)
        count += good
        violations += free_space_violations(view, reprojection, VIOLATION_SHARE)
        hidden += hidden_points(view, reprojection, VIOLATION_SHARE)
    share = expected_share(count, violations, hidden, depth.correlation)
    inverse_depth = np.where((count > 0) & (share >= config.min_share), total / (1 + count), np.nan)
    # in logarithms, so that a share of the depth is the same step everywhere
    min_pixels = max(SPECKLE_MIN_PIXELS, round(SPECKLE_SHARE * inverse_depth.size))
    valid = np.isfinite(remove_speckles(np.log(inverse_depth), SPECKLE_STEP, min_pixels, levels=64))
    inverse_depth = np.where(valid, inverse_depth, np.nan)
    points_cam = backproject(pixel_grid(*valid.shape), 1 / inverse_depth, view.K)
    confidence = np.where(valid, share, 0)
    return PointMap(
        transform_points(view.world_from_cam, points_cam).astype(np.float32),
        confidence.astype(np.float32),
        valid,
        photo.rgb,
        np.linalg.inv(photo.reduced_from_image),
        sky=depth.sky,
    )


def expected_share(
    consistent: np.ndarray, violations: np.ndarray, hidden: np.ndarray, correlation: np.ndarray
) -> np.ndarray:
    """(H, W) the share of points with the same evidence whose depth is within 5 % of the truth.

    The numbers of source views that are `consistent` with a point, whose free space it violates (`violations`), and
    whose surface hides it; the `correlation` of its windows in [0, 1]. A view that does not show the place has no part,
    so that one of two views that look at it counts for more than two of six. By logistic regression on three indoor
    sets with measured depth (docs/benchmarks/many-views.md).
    """
    evidence = EVIDENCE_OF_VIEW * np.minimum(consistent, MAX_COUNTED_VIEWS) + EVIDENCE_OF_VIOLATION * violations
    evidence += EVIDENCE_OF_HIDING * hidden + EVIDENCE_OF_CORRELATION * correlation.clip(0, 1) + EVIDENCE_BEFORE
    return special.expit(evidence)
