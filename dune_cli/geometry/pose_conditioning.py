"""Known poses for networks that take them: in the scale of the training, and back (numpy, float64).

Source: docs/models/depth-anything-3.md, "Cameras"; S. Umeyama, PAMI 1991.
"""

from __future__ import annotations

import numpy as np

from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.geometry.sim3 import similarity_from_points

MIN_EXTENT = 0.1  # scenes are not enlarged beyond it
MIN_VIEWS = 3
RANSAC_VIEWS, RANSAC_ROUNDS, RANSAC_SEED = 10, 10, 42
ERROR = (
    "{views} given poses do not determine how the predicted world lies in theirs: three or more are needed, whose "
    "camera centres do not lie on one line"
)


def normalised_poses(cam_from_world: np.ndarray) -> np.ndarray:
    """(V, 4, 4) the poses with the first camera as the world, translations divided by the lower median of the distances
    of the centres from it (its own 0 counts), or by 0.1 where that is less."""
    poses = np.asarray(cam_from_world, dtype=np.float64)
    poses = poses @ inverse(poses[0])
    distances = np.sort(np.linalg.norm(inverse(poses)[:, :3, 3], axis=-1))
    poses[:, :3, 3] /= max(MIN_EXTENT, float(distances[(len(distances) - 1) // 2]))
    return poses


def similarity_to_predicted(given: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(4, 4) `predicted_from_given`: the similarity that takes the given camera centres to the predicted ones.

    given, predicted (V, 4, 4): world_from_cam. Least squares; of ten views or more RANSAC, ten rounds of half of them,
    with a threshold of the median distance from a given centre, after a first fit, to the nearest predicted one.
    ValueError for fewer than three views, and for centres on one line.
    """
    points, targets = (np.asarray(poses, dtype=np.float64)[:, :3, 3] for poses in (given, predicted))
    count = len(points)
    if count < MIN_VIEWS or not _determined(points, targets):
        raise ValueError(ERROR.format(views=count))
    first = similarity_from_points(targets, points)
    if count < RANSAC_VIEWS:
        return first
    moved = transform_points(first, points)
    threshold = np.median(np.linalg.norm(targets[None] - moved[:, None], axis=-1).min(1))
    rng = np.random.default_rng(RANSAC_SEED)
    best, best_score, inliers = first, (-1, -np.inf), None
    for _ in range(RANSAC_ROUNDS):
        sample = rng.choice(np.arange(count), size=max(MIN_VIEWS, (count + 1) // 2), replace=False)
        if not _determined(points[sample], targets[sample]):
            continue
        fit = similarity_from_points(targets[sample], points[sample])
        errors = np.linalg.norm(transform_points(fit, points) - targets, axis=1)
        near = errors <= threshold
        score = (int(near.sum()), -float(errors[near].mean()) if near.any() else -np.inf)
        if score > best_score:
            best, best_score, inliers = fit, score, near
    if inliers is None or inliers.sum() < MIN_VIEWS:
        return best
    if not _determined(points[inliers], targets[inliers]):
        raise ValueError(ERROR.format(views=count))
    return similarity_from_points(targets[inliers], points[inliers])


def _determined(points: np.ndarray, targets: np.ndarray) -> bool:
    """Whether two points sets (V, 3) spread over a plane at least, so that a rotation follows from them."""
    centred, others = points - points.mean(0), targets - targets.mean(0)
    sizes = np.linalg.svd(others.T @ centred / len(points), compute_uv=False)
    return int((sizes > np.finfo(np.float64).eps * max(1.0, sizes[0])).sum()) >= 2
