"""Models that share photos become one.

COLMAP's incremental mapper begins another model with the photos that it could not add to the first one, and lets it
grow into up to 20 photos of the first one, by which both can be joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dune_cli.geometry.poses import rotation_angle
from dune_cli.geometry.sim3 import move_poses, relative_residuals, similarity_from_poses
from dune_cli.sfm.scene import SfmModel

MIN_SHARED = 5  # photos
SAME_ROTATION_DEG, SAME_CENTRE = 2.0, 0.05  # of a photo in both models; of the spread of the shared centres
MIN_AGREE = 0.8  # of the shared photos


def joined_poses(models: Sequence[SfmModel]) -> dict[int, np.ndarray]:
    """The poses `world_from_cam` of the first model, photo -> (4, 4), and of the photos that others have beside enough
    of its own, where these have the same poses in both up to a similarity."""
    poses = dict(models[0].world_from_cam)
    for model in models[1:]:
        shared = poses.keys() & model.world_from_cam.keys()
        if len(shared) < MIN_SHARED or len(shared) == len(model.world_from_cam):
            continue
        one_from_other = _common_similarity(poses, model.world_from_cam)
        if one_from_other is not None:
            for index in model.world_from_cam.keys() - shared:
                poses[index] = move_poses(one_from_other, model.world_from_cam[index])
    return poses


def same_poses(one: SfmModel, other: SfmModel) -> bool:
    """Whether two models have the same poses of the photos that they share, up to a similarity."""
    return _common_similarity(one.world_from_cam, other.world_from_cam) is not None


def _common_similarity(one: Mapping[int, np.ndarray], other: Mapping[int, np.ndarray]) -> np.ndarray | None:
    """(4, 4) the similarity from the world of the `other` poses, photo -> (4, 4), if most of the shared ones agree."""
    shared = sorted(one.keys() & other.keys())
    ours, theirs = (np.stack([of[index] for index in shared]) for of in (one, other))
    ours_from_theirs = similarity_from_poses(ours, theirs)
    turned = rotation_angle(np.swapaxes(ours[:, :3, :3], 1, 2) @ move_poses(ours_from_theirs, theirs)[:, :3, :3])
    spread = np.full(len(ours), np.linalg.norm(ours[:, :3, 3].std(axis=0)))
    moved = relative_residuals(ours_from_theirs, ours[:, :3, 3], theirs[:, :3, 3], np.maximum(spread, 1e-12))
    agree = (np.degrees(turned) < SAME_ROTATION_DEG) & (moved < SAME_CENTRE)
    return ours_from_theirs if agree.mean() >= MIN_AGREE else None
