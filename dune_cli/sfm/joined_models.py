"""Models that share photos become one.

COLMAP's incremental mapper begins another model with the photos that it could not add to the first one, and lets it
grow into up to 20 photos of the first one, by which both can be joined.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        shared = sorted(poses.keys() & model.world_from_cam.keys())
        if len(shared) < MIN_SHARED or len(shared) == len(model.world_from_cam):
            continue
        one, other = (np.stack([of[index] for index in shared]) for of in (poses, model.world_from_cam))
        one_from_other = similarity_from_poses(one, other)
        turned = rotation_angle(np.swapaxes(one[:, :3, :3], 1, 2) @ move_poses(one_from_other, other)[:, :3, :3])
        spread = np.full(len(one), np.linalg.norm(one[:, :3, 3].std(axis=0)))
        moved = relative_residuals(one_from_other, one[:, :3, 3], other[:, :3, 3], np.maximum(spread, 1e-12))
        if np.mean((np.degrees(turned) < SAME_ROTATION_DEG) & (moved < SAME_CENTRE)) < MIN_AGREE:
            continue
        for index in model.world_from_cam.keys() - poses.keys():
            poses[index] = move_poses(one_from_other, model.world_from_cam[index])
    return poses
