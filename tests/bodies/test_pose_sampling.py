"""Poses by chance, and their mirror images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dune_cli.bodies.fit_terms import joint_limits
from dune_cli.bodies.pose_sampling import mirrored, sample_poses
from dune_cli.bodies.registry import load_anny
from dune_cli.bodies.skeleton import FREE_JOINTS, AnnySkeleton
from dune_cli.geometry.poses import rotvec_from_rotation


@pytest.fixture(scope="module")
def skeleton() -> AnnySkeleton:
    return AnnySkeleton(load_anny(), shifted=False)


def test_joints_turn_within_their_limits(skeleton: AnnySkeleton) -> None:
    shape = np.tile(skeleton.mean_shape, (50, 1))
    poses = sample_poses(skeleton, shape, np.random.default_rng(0))
    assert np.array_equal(poses, sample_poses(skeleton, shape, np.random.default_rng(0)))
    angles = np.linalg.norm(rotvec_from_rotation(poses), axis=-1)
    assert (angles[:, 1:] <= joint_limits()[1:] + 1e-6).all()
    assert angles.std(0).min() > 0.01
    down = poses[:, 0, 1, 2]  # the camera's vertical of the body's own: -1 upright
    assert (down < -0.9).mean() > 0.6 and down.max() > -0.5


def test_a_mirrored_pose_has_mirrored_joints(skeleton: AnnySkeleton) -> None:
    body, free = skeleton.body, skeleton.free
    shape = np.tile(skeleton.mean_shape, (3, 1))
    poses = sample_poses(skeleton, shape, np.random.default_rng(1))
    full = skeleton.body_rotations(poses, skeleton.offsets(shape))
    other = full.copy()
    other[:, free] = mirrored(full[:, free])
    assert np.allclose(mirrored(other[:, free]), full[:, free])

    def joints(rotations: np.ndarray) -> np.ndarray:
        posed = body.posed_joints(torch.from_numpy(rotations).float(), torch.from_numpy(shape).float())
        return posed[:, free].numpy()

    names = [name.translate(str.maketrans("LR", "RL")) if name[-2] == "." else name for name in FREE_JOINTS]
    swapped = joints(full)[:, [FREE_JOINTS.index(name) for name in names]]
    assert np.abs(joints(other) - swapped * [-1, 1, 1]).max() < 0.004  # Anny itself is a little lopsided


def test_joints_without_a_skin_are_those_with_it(skeleton: AnnySkeleton) -> None:
    body = skeleton.body
    rotations, shape = body.rest_rotations(2), torch.tensor(skeleton.mean_shape, dtype=torch.float32).repeat(2, 1)
    assert torch.equal(body(rotations, shape).joints, body.posed_joints(rotations, shape))
