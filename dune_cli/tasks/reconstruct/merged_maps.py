"""A view's own point maps out of all its pairs as one dense map, laid through the aligned depths of its anchors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dune_cli import optional
from dune_cli.geometry.cameras import backproject, pixel_grid, transform_pixels
from dune_cli.geometry.global_alignment import Alignment, PairPoints
from dune_cli.geometry.grid_mesh import depth_edges
from dune_cli.geometry.poses import transform_points
from dune_cli.tasks.reconstruct.pair_maps import ANCHORS, Encoded, PairMaker
from dune_cli.tasks.reconstruct.scene import PointMap

CORRECTION = 0.1  # logarithm of depth: what anchors correct a map by; more is an anchor that went astray


def merged_map(
    maker: PairMaker, photos: Sequence[Encoded], data: PairPoints, found: Alignment, view: int, min_confidence: float
) -> PointMap | None:
    """The mean of the view's depth maps by confidence, without those of pairs that agree less than half as well as the
    best, bent smoothly to the anchors' depths. None for a view without a pose."""
    if not found.registered[view]:
        return None
    rows = np.flatnonzero((data.pairs[:, 0] == view) & found.registered[data.pairs[:, 1]])
    agree = rows[found.pair_inliers[rows] >= 0.5 * found.pair_inliers[rows].max()]
    photo = photos[view]
    x, y = photo.anchor_pixels.T
    log_sum, weight_sum, sure_sum = (np.zeros(photo.colors.shape[:2]) for _ in range(3))
    for row in agree:
        depth, confidence = maker.own_map(photo, photos[data.pairs[row, 1]])
        good = (depth > 0) & np.isfinite(depth)
        gap = np.log(found.depth[view]) - np.log(np.where(good, depth, np.nan)[y, x])
        gap[data.confidence[row, 0] <= 0] = np.nan
        if not np.isfinite(gap).any():
            continue
        middle = float(np.nanmedian(gap))
        weight = np.where(good, confidence, 0.0)
        log_sum += weight * (np.log(np.where(good, depth, 1.0)) + middle)
        weight_sum += weight
        sure_sum += weight * confidence
    have = weight_sum > 0
    log_depth = log_sum / np.where(have, weight_sum, 1.0)
    log_depth += _correction(np.log(found.depth[view]) - np.where(have, log_depth, np.nan)[y, x], have.shape)
    confidence = sure_sum / np.where(have, weight_sum, 1.0)
    depth = np.where(have, np.exp(log_depth), np.nan)
    valid = have & (confidence >= min_confidence)
    valid &= ~depth_edges(np.where(valid, depth, 1.0), valid)
    image_from_map = np.linalg.inv(photo.network_from_image)
    pixels = transform_pixels(image_from_map, pixel_grid(*depth.shape))
    points = transform_points(found.world_from_cam[view], backproject(pixels, depth, found.K[view]))
    return PointMap(points, confidence, valid, photo.colors, image_from_map)


def _correction(gaps: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(h, w) smooth: the anchors' gaps (A,) in log depth, without those that stand out, spread over the map."""
    cv2 = optional.require("cv2", "dense point maps")
    grid = gaps.reshape(ANCHORS, ANCHORS)
    near = np.isfinite(grid) & (np.abs(grid - np.nanmedian(grid)) < CORRECTION) if np.isfinite(grid).any() else None
    if near is None or not near.any():
        return np.zeros(shape)
    filled, weight = np.where(near, grid, 0.0), near.astype(np.float64) + 1e-9
    smooth = cv2.GaussianBlur(filled, (0, 0), 1.5) / cv2.GaussianBlur(weight, (0, 0), 1.5)
    return cv2.resize(smooth, shape[::-1], interpolation=cv2.INTER_LINEAR)
