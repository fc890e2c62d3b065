"""Dense depth of photo sets with known cameras, against depth that was measured.

Sets are `map_reloc.read_places`'s, whose frames also name a "depth" PNG (relative to the json): metres times the
frame's "depth_scale" (1000 where absent), 0 where there is none, pixel by pixel with the photo.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import KDTree

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.evaluation.localization import PosedSet
from dune_cli.evaluation.multiview import intrinsics_of
from dune_cli.geometry.cameras import pixel_grid, transform_pixels
from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.io.cache import WorkFolder
from dune_cli.io.depth_files import MILLIMETRES, read_depth
from dune_cli.io.json_files import Fields
from dune_cli.io.outputs import scratch_folder
from dune_cli.io.photos import read_photo
from dune_cli.io.safe_read import is_file, read_json, shown
from dune_cli.matchers.matcher import Matcher
from dune_cli.mvs.depth_maps import estimate_depth_maps
from dune_cli.mvs.quality import DenseConfig
from dune_cli.provenance import Run
from dune_cli.sfm.scene import Scene, View
from dune_cli.tasks.reconstruct import many

CLOSE, RATIO = 0.05, 1.25
MEDIAN, NEAREST = "median depth", "nearest sparse point"
Maps = list[np.ndarray | None]  # (H, W) metres on the photo's pixels, NaN where there is none; None: no map at all


@dataclass(frozen=True)
class DepthErrors:
    """Of the pixels whose depth was measured: `completeness` the share that has an estimate, and of those the mean
    `abs_rel` of |estimate - truth| / truth, the share `delta` with a ratio below 1.25 either way, and the share
    `close` within 5 %. `close_of_all`: close ones as a share of all measured pixels. NaN without estimates."""

    pixels: int
    completeness: float
    abs_rel: float
    delta: float
    close: float
    close_of_all: float


@dataclass(frozen=True)
class ViewScore:
    """A method on one photo of a set."""

    set_name: str
    image: str
    method: str
    errors: DepthErrors


def depth_errors(found: np.ndarray | None, true: np.ndarray) -> DepthErrors:
    """`found` (H, W), NaN or <= 0 where there is no estimate (None: nowhere), `true` (H, W), NaN or <= 0 where nothing
    was measured. ValueError where nothing was, and for shapes that differ (D. Eigen et al., NIPS 2014, section 4.2)."""
    measured = np.isfinite(true) & (true > 0)
    if not measured.any():
        raise ValueError("no pixel has a true depth")
    found = np.full(true.shape, np.nan) if found is None else np.asarray(found, np.float64)
    if found.shape != true.shape:
        raise ValueError(f"a depth map of {found.shape} does not go with a truth of {true.shape}")
    have = measured & np.isfinite(found) & (found > 0)
    count, pixels = int(have.sum()), int(measured.sum())
    if count == 0:
        nan = float("nan")
        return DepthErrors(pixels, 0.0, nan, nan, nan, 0.0)
    ratio = found[have] / true[have]
    off = np.abs(ratio - 1)
    close = int((off <= CLOSE).sum())
    within = float((np.maximum(ratio, 1 / ratio) < RATIO).mean())
    return DepthErrors(pixels, count / pixels, float(off.mean()), within, close / count, close / pixels)


def mean_errors(errors: Sequence[DepthErrors]) -> DepthErrors:
    """Over photos, each counting the same; those without estimates count in completeness and `close_of_all` only."""

    def mean(values: list[float]) -> float:
        values = [value for value in values if np.isfinite(value)]
        return float(np.mean(values)) if values else float("nan")

    return DepthErrors(
        sum(e.pixels for e in errors),
        mean([e.completeness for e in errors]),
        mean([e.abs_rel for e in errors]),
        mean([e.delta for e in errors]),
        mean([e.close for e in errors]),
        mean([e.close_of_all for e in errors]),
    )


def true_depths(place: PosedSet) -> list[np.ndarray | None] | None:
    """(H, W) metres of each photo, 0 where there is none, and None for a photo without any; None for a set without
    depth, or whose lengths are not metres. Notes say what is left out. UserError where a depth map is not there or its
    size is not its photo's."""
    (file,) = place.map.files
    every = Fields(read_json(file), str(file)).objects("frames")
    frames = [every[index] for index in place.frames]
    named = [frame.text("depth", None) is not None for frame in frames]
    if not any(named):
        return None
    if not place.metric:
        console.note(f'{file} is left out: it has depth in metres, but its "scale" is not metric')
        return None
    depths: list[np.ndarray | None] = []
    for frame, image, has_depth in zip(frames, place.map.images, named):
        if not has_depth:
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
    lacking = [image.name for image, depth in zip(place.map.images, depths) if depth is None]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        console.note(f"{file}: left out, for no depth was measured: {lacking[0]}{more}")
    return depths if len(lacking) < len(depths) else None


def sparse_scene(place: PosedSet, matcher: Matcher, seed: int) -> Scene:
    """The set's points, triangulated by a matcher from the true cameras."""
    paths = [image.file for image in place.map.images]
    known = {image.file: image.world_from_cam for image in place.map.images}
    with scratch_folder(prefix="dune-eval-") as folder:
        work, config = WorkFolder(folder), many.ManyConfig(seed=seed)
        return many.reconstruct(paths, intrinsics_of(place, True), matcher, config, work, Run(seed), None, known)


def dense_maps(scene: Scene, place: PosedSet, config: DenseConfig) -> Maps:
    """The dense part's depth, looked up at the photos' pixels."""
    assert scene.sparse is not None
    views = scene.views
    maps = estimate_depth_maps(
        (read_photo(image.file).rgb for image in place.map.images),
        [view.K for view in views],
        [view.world_from_cam for view in views],
        scene.sparse,
        config,
        Run(),
    )
    return [None if one is None else on_photo(replace(view, dense=one)) for view, one in zip(views, maps)]


def on_photo(view: View) -> np.ndarray:
    """(H, W) depth of the view at its photo's pixels: that of the nearest pixel of its map, NaN where not valid."""
    depth, dense = view.depth, view.dense
    assert depth is not None and dense is not None
    places = transform_pixels(np.linalg.inv(dense.image_from_map), pixel_grid(view.height, view.width))
    x, y = np.moveaxis(np.rint(places).astype(int), -1, 0)
    inside = (x >= 0) & (y >= 0) & (x < depth.shape[1]) & (y < depth.shape[0])
    return np.where(inside, depth[np.where(inside, y, 0), np.where(inside, x, 0)], np.nan)


def controls(scene: Scene, true: Sequence[np.ndarray | None]) -> Mapping[str, Maps]:
    """What needs no dense part: the true depth's median everywhere (which the truth itself tells), and every pixel with
    the depth of the sparse point nearest to it in the photo."""
    assert scene.sparse is not None
    medians: Maps = [None if d is None else np.full(d.shape, np.median(d[d > 0])) for d in true]
    nearest: Maps = []
    for view, (index, pixels), depth in zip(scene.views, scene.sparse.observations, true):
        if depth is None or not view.registered or not len(index):
            nearest.append(None)
            continue
        points = transform_points(inverse(view.world_from_cam), scene.sparse.points_world[index])
        _, which = KDTree(pixels).query(pixel_grid(*depth.shape))
        nearest.append(points[which, 2])
    return {MEDIAN: medians, NEAREST: nearest}


def score_set(
    place: PosedSet, matcher: Matcher, qualities: Sequence[str], device: str, seed: int
) -> Iterator[tuple[str, float, list[ViewScore]]]:
    """Each method's name, seconds (of the dense part, matching not counted) and a score a photo; nothing for a set
    without depth."""
    true = true_depths(place)
    if true is None:
        return
    scene = sparse_scene(place, matcher, seed)
    for name, maps in controls(scene, true).items():
        yield name, 0.0, _scores(place, name, maps, true)
    for quality in qualities:
        start = time.perf_counter()
        maps = dense_maps(scene, place, DenseConfig(quality, device=device))
        yield f"dense {quality}", time.perf_counter() - start, _scores(place, f"dense {quality}", maps, true)


def _scores(place: PosedSet, name: str, maps: Maps, true: Sequence[np.ndarray | None]) -> list[ViewScore]:
    rows = zip(place.map.images, maps, true)
    return [
        ViewScore(place.name, image.name, name, depth_errors(found, depth))
        for image, found, depth in rows
        if depth is not None
    ]
