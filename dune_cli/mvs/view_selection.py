"""Which source views each view is matched with, its depth range, and the plane directions of the scene: all from the
sparse points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse as matrices
from scipy.spatial import cKDTree

from dune_cli.geometry.poses import inverse, transform_points, vector_angle

BEST_ANGLE_DEG, NARROW_DEG, WIDE_DEG = 5.0, 1.0, 10.0
MIN_SHARED = 5
MIN_POINTS = 8
RANGE_MARGIN = 0.25  # of the inverse depth at either end of a range
NEAREST_POINTS = 12  # that make a patch with a point
FLATNESS = 0.2  # of the middle spread of a patch: its least spread is below that where it is flat
SAME_DEG, APART_DEG = 12.0, 25.0
MIN_NORMAL_SHARE = 0.06  # of the flat patches that a direction needs


@dataclass(frozen=True)
class VisiblePoints:
    """The sparse points of one view: their `index` (K,), sorted, and their `depth` z (K,) in it."""

    index: np.ndarray
    depth: np.ndarray


def visible_points(
    points_world: np.ndarray, tracks: Sequence[np.ndarray], world_from_cams: Sequence[np.ndarray]
) -> list[VisiblePoints]:
    """For each view its points in front of the camera. `tracks`: for each view the indices (K,) of the points that it
    observes."""
    views = []
    for index, pose in zip(tracks, world_from_cams):
        index = np.unique(np.asarray(index, dtype=np.int64))
        depth = transform_points(inverse(pose), points_world[index])[:, 2]
        views.append(VisiblePoints(index[depth > 0], depth[depth > 0]))
    return views


def select_views(
    points_world: np.ndarray,
    views: Sequence[VisiblePoints],
    Ks: Sequence[np.ndarray],
    world_from_cams: Sequence[np.ndarray],
    count: int,
) -> list[tuple[int, ...]]:
    """For each view its at most `count` best source views, best first; they share at least 5 points with it.

    A shared point counts by its triangulation angle (Y. Yao et al., "MVSNet", ECCV 2018, section 4.1: best at 5
    degrees, deviation 1 below and 10 above) and by how similar its resolution in both views is (M. Goesele et al.,
    "Multi-view stereo for community photo collections", ICCV 2007, section 4.1).
    """
    rows = np.concatenate([np.full(len(view.index), i) for i, view in enumerate(views)])
    columns = np.concatenate([view.index for view in views])
    visibility = matrices.csr_matrix((np.ones(len(rows), np.int64), (rows, columns)), (len(views), len(points_world)))
    shared = matrices.triu(visibility @ visibility.T, k=1).tocoo()
    scores: list[list[tuple[float, int]]] = [[] for _ in views]
    centres = np.array([pose[:3, 3] for pose in world_from_cams])
    focals_px = [float(np.sqrt(abs(np.linalg.det(K[:2, :2])))) for K in Ks]
    for i, j, number in zip(shared.row, shared.col, shared.data):
        if number < MIN_SHARED:
            continue
        _, in_i, in_j = np.intersect1d(views[i].index, views[j].index, assume_unique=True, return_indices=True)
        points = points_world[views[i].index[in_i]]
        angle = _angle_weight(np.degrees(vector_angle(points - centres[i], points - centres[j])))
        resolution = (focals_px[j] / views[j].depth[in_j]) / (focals_px[i] / views[i].depth[in_i])
        scores[i].append((-float((angle * _resolution_weight(resolution)).sum()), int(j)))
        scores[j].append((-float((angle * _resolution_weight(1 / resolution)).sum()), int(i)))
    return [tuple(j for score, j in sorted(own)[:count] if score < 0) for own in scores]


def inverse_depth_range(view: VisiblePoints) -> tuple[float, float] | None:
    """Inverse depths (far, near) of a view: the 1st and 99th percentile of its points with a margin of a quarter; None
    with fewer than 8 points."""
    if len(view.depth) < MIN_POINTS:
        return None
    far, near = np.percentile(1 / view.depth, [1, 99])
    return float(far) * (1 - RANGE_MARGIN), float(near) * (1 + RANGE_MARGIN)


def _angle_weight(angle_deg: np.ndarray) -> np.ndarray:
    spread = np.where(angle_deg <= BEST_ANGLE_DEG, NARROW_DEG, WIDE_DEG)
    return np.exp(-((angle_deg - BEST_ANGLE_DEG) ** 2) / (2 * spread**2))


def _resolution_weight(resolution: np.ndarray) -> np.ndarray:
    """Of a source view with `resolution` times the reference's: 1 up to twice, less beyond and below."""
    return np.where(resolution >= 2, 2 / resolution, np.minimum(resolution, 1))


def dominant_normals(points: np.ndarray, count: int) -> np.ndarray:
    """(F, 3) unit normals, signs arbitrary, of at most `count` plane directions (floors, walls, table tops) among
    `points` (M, 3), the most frequent first.

    Every point and its 12 nearest make a patch. Flat patches with similar normals count together (D. Gallup et al.,
    "Real-time plane-sweeping stereo with multiple sweeping directions", CVPR 2007, section 4.1, which takes the
    directions from sparse points as well).
    """
    if len(points) <= NEAREST_POINTS:
        return np.zeros((0, 3))
    near = cKDTree(points).query(points, k=NEAREST_POINTS + 1)[1]
    patches = points[near] - points[near].mean(1, keepdims=True)
    spread, axes = np.linalg.eigh(np.einsum("mki,mkj->mij", patches, patches))
    flat = spread[:, 0] < FLATNESS**2 * spread[:, 1]
    normals = axes[flat, :, 0]
    directions: list[np.ndarray] = []
    min_patches = max(5, MIN_NORMAL_SHARE * len(normals))
    while len(directions) < count and len(normals):
        candidates = normals[:: max(1, len(normals) // 500)]
        similar = np.abs(candidates @ normals.T) > np.cos(np.radians(SAME_DEG))
        best = int(similar.sum(1).argmax())
        members = normals[similar[best]]
        if len(members) < min_patches:
            break
        mean = np.linalg.eigh(members.T @ members)[1][:, -1]
        directions.append(mean)
        normals = normals[np.abs(normals @ mean) < np.cos(np.radians(APART_DEG))]
    return np.array(directions).reshape(-1, 3)
