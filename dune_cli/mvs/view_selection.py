"""Which views help each other, and between which depths a view looks."""

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
MARGIN = 0.25  # of the inverse depth at either end of a range


@dataclass(frozen=True)
class ViewPoints:
    """What one view sees: `index` (K,) of the sparse points, sorted, and their depth z (K,) in it."""

    index: np.ndarray
    depth: np.ndarray


def points_of_views(
    points_world: np.ndarray, seen: Sequence[np.ndarray], world_from_cams: Sequence[np.ndarray]
) -> list[ViewPoints]:
    """For each view its points before the camera. `seen`: for each view the indices (K,) of points that it sees."""
    views = []
    for index, pose in zip(seen, world_from_cams):
        index = np.unique(np.asarray(index, dtype=np.int64))
        depth = transform_points(inverse(pose), points_world[index])[:, 2]
        views.append(ViewPoints(index[depth > 0], depth[depth > 0]))
    return views


def select_views(
    points_world: np.ndarray,
    views: Sequence[ViewPoints],
    Ks: Sequence[np.ndarray],
    world_from_cams: Sequence[np.ndarray],
    count: int,
) -> list[tuple[int, ...]]:
    """For each view its at most `count` best neighbours, best first; those that share fewer than 5 points are none.

    A shared point counts by the angle at which it sees both views (Y. Yao et al., "MVSNet", ECCV 2018, section 4.1:
    best at 5 degrees, deviation 1 below and 10 above) and by how alike in size both see it (M. Goesele et al.,
    "Multi-view stereo for community photo collections", ICCV 2007, section 4.1).
    """
    rows = np.concatenate([np.full(len(view.index), i) for i, view in enumerate(views)])
    columns = np.concatenate([view.index for view in views])
    seen = matrices.csr_matrix((np.ones(len(rows), np.int64), (rows, columns)), (len(views), len(points_world)))
    shared = matrices.triu(seen @ seen.T, k=1).tocoo()
    scores: list[list[tuple[float, int]]] = [[] for _ in views]
    centres = np.array([pose[:3, 3] for pose in world_from_cams])
    focals_px = [float(np.sqrt(abs(np.linalg.det(K[:2, :2])))) for K in Ks]
    for i, j, number in zip(shared.row, shared.col, shared.data):
        if number < MIN_SHARED:
            continue
        _, in_i, in_j = np.intersect1d(views[i].index, views[j].index, assume_unique=True, return_indices=True)
        points = points_world[views[i].index[in_i]]
        angle = _angle_weight(np.degrees(vector_angle(points - centres[i], points - centres[j])))
        finer = (focals_px[j] / views[j].depth[in_j]) / (focals_px[i] / views[i].depth[in_i])
        scores[i].append((-float((angle * _size_weight(finer)).sum()), int(j)))
        scores[j].append((-float((angle * _size_weight(1 / finer)).sum()), int(i)))
    return [tuple(j for score, j in sorted(own)[:count] if score < 0) for own in scores]


def inverse_depth_range(view: ViewPoints) -> tuple[float, float] | None:
    """The far and near end of what a view looks at, as inverse depths: the sparse points' 1st and 99th percentile with
    a quarter more; None for a view with fewer than 8 points."""
    if len(view.depth) < MIN_POINTS:
        return None
    far, near = np.percentile(1 / view.depth, [1, 99])
    return float(far) * (1 - MARGIN), float(near) * (1 + MARGIN)


def _angle_weight(angle_deg: np.ndarray) -> np.ndarray:
    spread = np.where(angle_deg <= BEST_ANGLE_DEG, NARROW_DEG, WIDE_DEG)
    return np.exp(-((angle_deg - BEST_ANGLE_DEG) ** 2) / (2 * spread**2))


def _size_weight(finer: np.ndarray) -> np.ndarray:
    """Of a neighbour that sees `finer` times the reference's detail: 1 up to twice, less beyond and below."""
    return np.where(finer >= 2, 2 / finer, np.minimum(finer, 1))


# The directions that a scene's surfaces face, from its sparse points: floors, walls, table tops.


NEIGHBOURS = 12
FLATNESS = 0.2  # the least spread of a flat patch against its middle one
SAME_DEG, APART_DEG = 12.0, 25.0
MIN_SHARE = 0.06  # of the flat patches that a direction needs


def dominant_normals(points: np.ndarray, count: int) -> np.ndarray:
    """(F, 3) unit normals, signs arbitrary, at most `count`, of planes that `points` (M, 3) lie on, commonest first.

    Every point and its 12 nearest make a patch; of the flat ones those that face alike count together (D. Gallup et
    al., "Real-time plane-sweeping stereo with multiple sweeping directions", CVPR 2007, section 4.1, which takes the
    directions from sparse points as well).
    """
    if len(points) <= NEIGHBOURS:
        return np.zeros((0, 3))
    near = cKDTree(points).query(points, k=NEIGHBOURS + 1)[1]
    patches = points[near] - points[near].mean(1, keepdims=True)
    spread, axes = np.linalg.eigh(np.einsum("mki,mkj->mij", patches, patches))
    flat = spread[:, 0] < FLATNESS**2 * spread[:, 1]
    normals = axes[flat, :, 0]
    found: list[np.ndarray] = []
    need = max(5, MIN_SHARE * len(normals))
    while len(found) < count and len(normals):
        candidates = normals[:: max(1, len(normals) // 500)]
        alike = np.abs(candidates @ normals.T) > np.cos(np.radians(SAME_DEG))
        best = int(alike.sum(1).argmax())
        members = normals[alike[best]]
        if len(members) < need:
            break
        mean = np.linalg.eigh(members.T @ members)[1][:, -1]
        found.append(mean)
        normals = normals[np.abs(normals @ mean) < np.cos(np.radians(APART_DEG))]
    return np.array(found).reshape(-1, 3)
