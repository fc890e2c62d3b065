"""Depth of a network where multi-view stereo has none: on walls without texture, and where no second view looks.

The network's inverse depth is fitted to the measured one of the same photo by a factor and a shift (R. Ranftl et al.,
"Towards robust monocular depth estimation", PAMI 2022, section 5). What is left, the logarithm of the ratio, is
interpolated from the measured pixels in a bilateral grid (J. Chen, S. Paris and F. Durand, "Real-time edge-aware image
processing with the bilateral grid", SIGGRAPH 2007), whose third axis is the network's own depth: the filled surface
meets the measured one at its border, and nothing is carried across a depth edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage, special

from dune_cli import console
from dune_cli.geometry.cameras import backproject, pixel_grid, project
from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.mvs.consistency import PosedDepth
from dune_cli.provenance import Source
from dune_cli.sfm.scene import PointMap, SparsePoints, View

FILLED_CONFIDENCE = 0.2  # all filled pixels are below, all measured ones above
MIN_MEASURED = 200  # pixels that determine the fit
FIT_ROUNDS, FIT_SAMPLES = 20, 20_000
SLOPE_SPREAD = 0.03  # of the network's inverse depth: where it varies less, one factor fits it
FARTHEST = 0.1  # of the farthest measured inverse depth: what is fitted beyond is not filled
CELL_SHARE, MIN_CELL_PX = 1 / 64, 4  # of the map's long side: a cell of the grid
DEPTH_STEP = 0.12  # of the logarithm of depth between two cells
REACHES = (12.0, 6.0, 3.0, 1.5, 0.7)  # in cells, from coarse to fine
REACH_ERRORS = (0.15, 0.08, 0.04, 0.02, 0.0)  # of depth that is carried so far, beside the spread where it comes from
GLOBAL_ERROR = 0.3  # of depth that is carried farther
POINT_WEIGHT = 50.0  # of a sparse point, in measured pixels
MAX_EXPECTED_ERROR = 0.1  # of the depth: by measurement, the mean error is about half of it
CLOSE = 0.05  # of the depth: confidence is the share within
CONTRADICTION = 0.1  # of the depth: a filled point is no nearer than that to what another view measured behind it
MAX_OTHER_VIEWS = 8  # that a view's filled points are checked by


@dataclass(frozen=True)
class DepthNetwork:
    """`predict` of a photo (H, W, 3) uint8 and its K (3, 3): depth (H, W) up to a factor, and a shift of its inverse;
    NaN where there is none, as in the sky. `sources`: its weights, with their licences."""

    predict: Callable[[np.ndarray, np.ndarray], np.ndarray]
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class FilledDepth:
    """`depth` (H, W) z where the network has one that fits the measured depth, else NaN; `expected_error` (H, W), about
    the standard deviation of its logarithm."""

    depth: np.ndarray
    expected_error: np.ndarray


def fill_depth(
    measured: np.ndarray, predicted: np.ndarray, pixels: np.ndarray, point_depths: np.ndarray
) -> FilledDepth | None:
    """The `predicted` depth (H, W) of a network fitted to the `measured` one (H, W), NaN where there is none, and to
    sparse points at `pixels` (K, 2) with `point_depths` (K,). None where fewer than 200 pixels are measured, or where
    the network contradicts them: farther where they are nearer."""
    usable = np.isfinite(predicted) & (predicted > 0)
    known = usable & np.isfinite(measured)
    if known.sum() < MIN_MEASURED:
        return None
    inverse_predicted = 1 / np.where(usable, predicted, np.inf)
    factor, shift = robust_line(inverse_predicted[known], 1 / measured[known])
    if factor <= 0:
        return None
    fitted = factor * inverse_predicted + shift
    usable &= fitted > FARTHEST / float(np.percentile(measured[known], 99))
    log_depth = -np.log(np.where(usable, fitted, 1))
    log_depth = np.where(usable, log_depth, np.median(log_depth[known & usable]))

    height, width = measured.shape
    weight = (known & usable).astype(np.float64)
    ratio = np.where(weight > 0, np.log(np.where(known, measured, 1)) - log_depth, 0)
    x, y = np.rint(pixels).astype(int).T
    at = (x >= 0) & (y >= 0) & (x < width) & (y < height) & (point_depths > 0)
    x, y, log_points = x[at], y[at], np.log(point_depths[at])
    new = usable[y, x] & ~known[y, x]
    weight[y[new], x[new]] = POINT_WEIGHT
    ratio[y[new], x[new]] = log_points[new] - log_depth[y[new], x[new]]
    correction, spread = _extended(ratio, weight, log_depth)
    return FilledDepth(np.where(usable, np.exp(log_depth + correction), np.nan), spread)


def fill_map(
    dense: PointMap, K: np.ndarray, world_from_cam: np.ndarray, points_world: np.ndarray, network: DepthNetwork
) -> PointMap:
    """A view's map with the network's depth where it has none and the network is expected to be right within 10 %: its
    `filled` pixels. `K` (3, 3) in the map's pixels; `points_world` (K, 3): the sparse points that the view sees.

    A filled pixel's confidence is 0.2 times the share of such pixels that are expected within 5 % of the truth.
    """
    cam_from_world = inverse(world_from_cam)
    measured = np.where(dense.valid, transform_points(cam_from_world, dense.points_world)[..., 2], np.nan)
    points_cam = transform_points(cam_from_world, points_world)
    points_cam = points_cam[points_cam[:, 2] > 0]
    predicted = network.predict(dense.colors, K)
    result = fill_depth(measured, predicted, project(points_cam, K), points_cam[:, 2])
    none = np.zeros(dense.valid.shape, dtype=bool)
    if result is None:
        return replace(dense, filled=none)
    filled = ~dense.valid & np.isfinite(result.depth) & (result.expected_error < MAX_EXPECTED_ERROR)
    points = transform_points(world_from_cam, backproject(pixel_grid(*filled.shape), result.depth, K))
    share = special.erf(CLOSE / np.maximum(result.expected_error, 1e-3) / np.sqrt(2))
    confidence = (FILLED_CONFIDENCE * share).clip(max=0.99 * FILLED_CONFIDENCE).astype(dense.confidence.dtype)
    return replace(
        dense,
        points_world=np.where(filled[..., None], points, dense.points_world).astype(dense.points_world.dtype),
        confidence=np.where(filled, confidence, dense.confidence),
        valid=dense.valid | filled,
        filled=filled,
    )


def fill_views(views: Sequence[View], sparse: SparsePoints, network: DepthNetwork) -> list[PointMap | None]:
    """The views' maps after `fill_map`, without filled points through which other views have measured a surface."""
    maps: list[PointMap | None] = []
    for view, (index, _) in zip(console.progress(views, "filling", len(views), "view"), sparse.observations):
        maps.append(
            view.dense and fill_map(view.dense, _K(view), view.world_from_cam, sparse.points_world[index], network)
        )
    seen = _filled_in_other_views([replace(view, dense=one) for view, one in zip(views, maps)], sparse)
    return [
        one if one is None or one.filled is None else one.without_filled(_grid(one, other.contradicted))
        for one, other in zip(maps, seen)
    ]


def surface_maps(views: Sequence[View], sparse: SparsePoints) -> list[PointMap | None]:
    """The views' maps as one surface: without the filled pixels that another view has measured, and those through
    which more views look than have filled the same place."""
    maps = []
    for view, other in zip(views, _filled_in_other_views(views, sparse)):
        one = view.dense
        if one is not None and one.filled is not None:
            one = one.without_filled(_grid(one, other.measured | (other.looked_through > other.confirmed)))
        maps.append(one)
    return maps


@dataclass(frozen=True)
class _InOtherViews:
    """Of a view's filled pixels (F,), in the order of the map: whether another view has measured something behind the
    point (`contradicted`), or behind it or there (`measured`); how many have filled the same place (`confirmed`), and
    how many have filled a place behind it (`looked_through`)."""

    contradicted: np.ndarray
    measured: np.ndarray
    confirmed: np.ndarray
    looked_through: np.ndarray


def _filled_in_other_views(views: Sequence[View], sparse: SparsePoints) -> Iterator[_InOtherViews]:
    depths = [None if view.dense is None else PosedDepth(view.depth, _K(view), view.world_from_cam) for view in views]
    for view, related in zip(views, related_views(views, sparse)):
        one = view.dense
        count = 0 if one is None or one.filled is None else int(one.filled.sum())
        result = _InOtherViews(*(np.zeros(count, kind) for kind in (bool, bool, int, int)))
        points = np.zeros((0, 3)) if one is None or not count else one.points_world[one.filled].astype(np.float64)
        for j in related if count else ():
            other, dense = depths[j], views[j].dense
            assert other is not None and dense is not None
            index, (y, x), z = _seen_at(points, other)
            ratio = z / other.depth[y, x]
            behind, there = ratio < 1 - CONTRADICTION, np.abs(ratio - 1) <= CONTRADICTION
            measured = dense.measured[y, x]
            result.contradicted[index] |= measured & behind
            result.measured[index] |= measured & (behind | there)
            result.confirmed[index] += ~measured & there
            result.looked_through[index] += ~measured & behind
        yield result


def _seen_at(points: np.ndarray, view: PosedDepth) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], np.ndarray]:
    """The indices of the points (N, 3) that project to a pixel of the view that has a depth, these pixels (y, x), and
    the points' z in the view."""
    points_cam = transform_points(inverse(view.world_from_cam), points)
    height, width = view.depth.shape
    pixels = np.nan_to_num(project(points_cam, view.K), nan=-1, posinf=-1, neginf=-1)
    x, y = np.rint(pixels).clip(-1, max(height, width)).astype(int).T
    index = np.flatnonzero((points_cam[:, 2] > 0) & (x >= 0) & (y >= 0) & (x < width) & (y < height))
    index = index[np.isfinite(view.depth[y[index], x[index]])]
    return index, (y[index], x[index]), points_cam[index, 2]


def _grid(dense: PointMap, chosen: np.ndarray) -> np.ndarray:
    """(h, w) bool of `chosen` (F,) among the filled pixels of a map."""
    assert dense.filled is not None
    result = np.zeros(dense.filled.shape, dtype=bool)
    result[dense.filled] = chosen
    return result


def related_views(views: Sequence[View], sparse: SparsePoints) -> list[list[int]]:
    """For each view at most 8 others with a map, those first that share the most sparse points with it."""
    counts = np.zeros((len(views), len(sparse.points_world)), dtype=bool)
    for i, (view, (index, _)) in enumerate(zip(views, sparse.observations)):
        if view.dense is not None:
            counts[i, index] = True
    related = []
    for i in range(len(views)):
        shared = (counts & counts[i]).sum(1)
        shared[i] = 0
        order = np.argsort(-shared, kind="stable")[:MAX_OTHER_VIEWS]
        related.append([int(j) for j in order if shared[j]])
    return related


def _K(view: View) -> np.ndarray:
    """(3, 3) of the view's dense map."""
    assert view.dense is not None
    return view.dense.intrinsics(view.K)


def robust_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(factor, shift) of y = factor x + shift with the least sum of absolute errors, by weighted least squares. Of
    positive x that hardly differ, as on one wall, the shift is near 0."""
    step = max(1, len(x) // FIT_SAMPLES)
    x_unit, y_unit = float(np.median(x)), float(np.median(y))
    x, y = x[::step] / x_unit, y[::step] / y_unit
    design = np.stack([x, np.ones_like(x)], axis=1)
    line = np.array([1.0, 0.0])
    for _ in range(FIT_ROUNDS):
        weights = 1 / np.maximum(np.abs(design @ line - y), 1e-3)
        weighted = design * weights[:, None]
        normal, right = weighted.T @ design, weighted.T @ y
        held = SLOPE_SPREAD**2 * weights.sum()
        normal[0, 0] += held
        right[0] += held
        line = np.linalg.solve(normal + 1e-12 * np.eye(2), right)
    return float(line[0]) * y_unit / x_unit, float(line[1]) * y_unit


def _extended(values: np.ndarray, weight: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) `values` carried from where `weight` > 0 to all pixels, and the standard deviation of those that they were
    carried from: near ones in the image and in `key` first, those farther away where there are none."""
    height, width = values.shape
    cell = max(MIN_CELL_PX, max(height, width) * CELL_SHARE)
    low, high = np.percentile(key, [0.5, 99.5])
    place = np.stack(np.broadcast_arrays((key.clip(low, high) - low) / DEPTH_STEP, *np.ogrid[:height, :width]))
    place[1:] /= cell
    shape = tuple(int(axis.max()) + 2 for axis in place)
    index = np.ravel_multi_index(tuple(np.rint(place).astype(int)), shape)[weight > 0]
    weight, values = weight[weight > 0], values[weight > 0]
    sums = [
        np.bincount(index, part, np.prod(shape)).reshape(shape)
        for part in (weight, weight * values, weight * values**2)
    ]
    mean = np.full(shape, np.average(values, weights=weight))
    square = np.full(shape, np.average(values**2, weights=weight) + GLOBAL_ERROR**2)
    enough = 0.02 * cell**2
    for reach, error in zip(REACHES, REACH_ERRORS):
        sigma = (0.5 + reach / 6, reach, reach)
        total, first, second = (ndimage.gaussian_filter(one, sigma, mode="constant", truncate=3) for one in sums)
        share = 1 / (total + enough)
        mean += share * (first - total * mean)
        square += share * (second + total * (error**2 - square))
    mean_at, square_at = (ndimage.map_coordinates(one, place, order=1, mode="nearest") for one in (mean, square))
    return mean_at, np.sqrt(np.maximum(square_at - mean_at**2, 0))
