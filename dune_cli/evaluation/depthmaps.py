"""`dune eval depthmaps`: dense depth of photo sets with known cameras, against measured depth.

Sets are those of posed_sets.py, whose frames also name a "depth" PNG (relative to the json): metres times the frame's
"depth_scale" (1000 where absent), 0 where nothing was measured, at the photo's pixels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.evaluation.metrics import DepthErrors, depth_errors
from dune_cli.evaluation.multiview import cameras_of
from dune_cli.evaluation.posed_sets import PosedSet
from dune_cli.geometry.cameras import pixel_grid, transform_pixels
from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.io.depth_files import MILLIMETRES, read_depth
from dune_cli.io.json_files import Fields
from dune_cli.io.safe_read import is_file, read_json, shown
from dune_cli.matchers.matcher import Matcher
from dune_cli.mvs.densify import estimate_depth_maps, undistorted_photos
from dune_cli.mvs.depth_fill import DepthNetwork, fill_views, robust_line
from dune_cli.mvs.quality import DenseConfig
from dune_cli.provenance import Run
from dune_cli.sfm.scene import PointMap, Scene, View
from dune_cli.tasks.reconstruct import matches
from dune_cli.tasks.reconstruct.config import MatchesConfig

MEDIAN, NEAREST = "median depth", "nearest sparse point"
MIN_INTERPOLATION_WEIGHT = 0.05
DepthMaps = list[np.ndarray | None]  # (H, W) metres at the photo's pixels, NaN where there is none; None: no map


@dataclass(frozen=True)
class ViewScore:
    """A method on one photo of a set."""

    set_name: str
    image: str
    method: str
    errors: DepthErrors


def score_set(
    posed: PosedSet,
    matcher: Matcher,
    qualities: Sequence[str],
    device: str,
    seed: int,
    fill: DepthNetwork | None = None,
) -> Iterator[tuple[str, float, list[ViewScore]]]:
    """Each method's name, seconds (without matching) and scores of the photos; nothing for a set without depth.

    `fill`: of each quality also the maps that the network fills, the filled pixels alone, and controls there.
    """
    true = true_depths(posed)
    if true is None:
        return
    scene = sparse_scene(posed, matcher, seed)
    for name, maps in controls(scene, true).items():
        yield name, 0.0, _scores(posed, name, maps, true)
    for quality in qualities:
        start = time.perf_counter()
        views = dense_views(scene, posed, DenseConfig(quality, device=device))
        seconds = time.perf_counter() - start
        yield f"dense {quality}", seconds, _scores(posed, f"dense {quality}", _photo_depths(views), true)
        if fill is None:
            continue
        start, points = time.perf_counter(), scene.sparse
        assert points is not None
        filled_maps = fill_views(views, points, fill)
        filled = [replace(view, dense=one) for view, one in zip(views, filled_maps)]
        seconds += time.perf_counter() - start
        yield f"{quality}, filled", seconds, _scores(posed, f"{quality}, filled", _photo_depths(filled), true)
        alone = _photo_depths([replace(view, dense=_filled_alone(view.dense)) for view in filled])
        there = [
            None if depth is None else np.where(np.isfinite(depth if one is None else one), depth, 0)
            for depth, one in zip(true, alone)
        ]
        there = [None if depth is None or not (depth > 0).any() else depth for depth in there]
        compared = {
            "filled pixels": alone,
            f"there, {NEAREST}": controls(scene, true)[NEAREST],
            "there, interpolated": [_interpolated(depth) for depth in _photo_depths(views)],
            "there, network fitted to sparse points": fitted_to_points(scene, posed, fill),
        }
        for name, maps in compared.items():
            yield f"{quality}: {name}", 0.0, _scores(posed, f"{quality}: {name}", maps, there)


def true_depths(posed: PosedSet) -> DepthMaps | None:
    """Measured depth of each photo: (H, W) metres, 0 where there is none; None for a photo without any.

    None for a set without depth, or whose lengths are not metres. Notes name what is left out. UserError where a depth
    map is missing or differs in size from its photo.
    """
    (file,) = posed.map.files
    entries = Fields(read_json(file), str(file)).objects("frames")
    frames = [entries[index] for index in posed.frames]
    has_depth = [frame.text("depth", None) is not None for frame in frames]
    if not any(has_depth):
        return None
    if not posed.metric:
        console.note(f'{file} is left out: it has depth in metres, but its "scale" is not metric')
        return None
    depths: DepthMaps = []
    for frame, image, is_named in zip(frames, posed.map.images, has_depth):
        if not is_named:
            depths.append(None)
            continue
        path = file.parent / frame["depth"]
        if not is_file(path):
            raise UserError(f"{frame.where}: the depth map {shown(frame['depth'])} is not there")
        depth = read_depth(path, frame.number("depth_scale", MILLIMETRES, 1e-6, 1e9))
        if depth.shape != (image.camera.height, image.camera.width):
            size = f"{depth.shape[1]} x {depth.shape[0]}"
            raise UserError(f"{path} has {size} px, its photo {image.camera.width} x {image.camera.height}")
        depths.append(depth if (depth > 0).any() else None)
    without = [image.name for image, depth in zip(posed.map.images, depths) if depth is None]
    if without:
        more = f" and {len(without) - 1} more" if len(without) > 1 else ""
        console.note(f"{file}: left out, for no depth was measured: {without[0]}{more}")
    return depths if len(without) < len(depths) else None


def sparse_scene(posed: PosedSet, matcher: Matcher, seed: int) -> Scene:
    """The set's points, triangulated from a matcher's matches at the true cameras."""
    paths = [image.file for image in posed.map.images]
    world_from_cam = {image.file: image.world_from_cam for image in posed.map.images}
    config, cameras = MatchesConfig(seed=seed), cameras_of(posed, True)
    return matches.reconstruct(paths, cameras, matcher, config, Run(seed), known_poses=world_from_cam)


def dense_views(scene: Scene, posed: PosedSet, config: DenseConfig) -> list[View]:
    """The views with their maps of multi-view stereo."""
    assert scene.sparse is not None
    views = scene.views
    maps = estimate_depth_maps(
        undistorted_photos(views, [image.file for image in posed.map.images]),
        [view.K for view in views],
        [view.world_from_cam for view in views],
        scene.sparse,
        config,
        Run(),
    )
    return [replace(view, dense=one) for view, one in zip(views, maps)]


def _photo_depths(views: Sequence[View]) -> DepthMaps:
    return [None if view.dense is None else at_photo_pixels(view) for view in views]


def _filled_alone(dense: PointMap | None) -> PointMap | None:
    return dense and replace(dense, valid=dense.valid & ~dense.measured)


def _interpolated(depth: np.ndarray | None) -> np.ndarray | None:
    """(H, W) depth carried smoothly into its holes: inverse depth by averages of ever larger windows."""
    if depth is None or not np.isfinite(depth).any():
        return None
    known = np.isfinite(depth)
    result, missing = np.where(known, 1 / np.where(known, depth, 1), 0.0), ~known
    for sigma in (2, 4, 8, 16, 32, 64, 128, 256):
        total = ndimage.gaussian_filter(np.where(known, 1 / np.where(known, depth, 1), 0.0), sigma)
        weight = ndimage.gaussian_filter(known.astype(np.float64), sigma)
        new = missing & (weight > MIN_INTERPOLATION_WEIGHT)
        result[new], missing = total[new] / weight[new], missing & ~new
    return np.where(missing, np.nan, 1 / np.where(missing, 1, result))


def fitted_to_points(scene: Scene, posed: PosedSet, network: DepthNetwork) -> DepthMaps:
    """The network's depth of each photo, its inverse fitted by a factor and a shift to that of the sparse points."""
    assert scene.sparse is not None
    maps: DepthMaps = []
    photos = undistorted_photos(scene.views, [image.file for image in posed.map.images])
    for view, (index, pixels), rgb in zip(scene.views, scene.sparse.observations, photos):
        predicted = network.predict(rgb, view.K)
        depth = transform_points(inverse(view.world_from_cam), scene.sparse.points_world[index])[:, 2]
        x, y = np.rint(view.camera.undistort(pixels)).astype(int).T
        at_points = predicted[y.clip(0, view.height - 1), x.clip(0, view.width - 1)]
        known = np.isfinite(at_points) & (depth > 0)
        if known.sum() < 2:
            maps.append(None)
            continue
        factor, shift = robust_line(1 / at_points[known], 1 / depth[known])
        fitted = factor / predicted + shift
        maps.append(np.where(fitted > 0, 1 / np.where(fitted > 0, fitted, 1), np.nan))
    return maps


def at_photo_pixels(view: View) -> np.ndarray:
    """(H, W) depth of the view at its photo's pixels: that of the nearest pixel of its map, NaN where not valid."""
    depth, dense = view.depth, view.dense
    assert depth is not None and dense is not None
    undistorted = np.nan_to_num(view.camera.undistort(pixel_grid(view.height, view.width)), nan=-1e6)
    pixels = transform_pixels(np.linalg.inv(dense.image_from_map), undistorted)
    x, y = np.moveaxis(np.rint(pixels).astype(int), -1, 0)
    inside = (x >= 0) & (y >= 0) & (x < depth.shape[1]) & (y < depth.shape[0])
    return np.where(inside, depth[np.where(inside, y, 0), np.where(inside, x, 0)], np.nan)


def controls(scene: Scene, true: Sequence[np.ndarray | None]) -> Mapping[str, DepthMaps]:
    """Depth maps without stereo: the median of the true depth everywhere, and at every pixel the depth of the nearest
    sparse point in the photo."""
    assert scene.sparse is not None
    medians: DepthMaps = [None if d is None else np.full(d.shape, np.median(d[d > 0])) for d in true]
    nearest: DepthMaps = []
    for view, (index, pixels), depth in zip(scene.views, scene.sparse.observations, true):
        if depth is None or not view.registered or not len(index):
            nearest.append(None)
            continue
        points_cam = transform_points(inverse(view.world_from_cam), scene.sparse.points_world[index])
        _, neighbour = KDTree(pixels).query(pixel_grid(*depth.shape))
        nearest.append(points_cam[neighbour, 2])
    return {MEDIAN: medians, NEAREST: nearest}


def _scores(posed: PosedSet, name: str, maps: DepthMaps, true: Sequence[np.ndarray | None]) -> list[ViewScore]:
    return [
        ViewScore(posed.name, image.name, name, depth_errors(estimated, depth))
        for image, estimated, depth in zip(posed.map.images, maps, true)
        if depth is not None
    ]
