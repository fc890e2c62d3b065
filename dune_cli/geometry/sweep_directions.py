"""The directions that a scene's surfaces face, from its sparse points: floors, walls, table tops."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

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
