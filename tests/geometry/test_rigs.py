"""Rigs: poses of frames, and pairs between them."""

from __future__ import annotations

import numpy as np

from dune_cli.geometry.poses import from_rotation_translation, inverse, rotation_from_rotvec
from dune_cli.geometry.rigs import NO_RIGS, Mount, Rigs


def pose(*vector: float) -> np.ndarray:
    return from_rotation_translation(rotation_from_rotvec(np.array(vector[:3])), np.array(vector[3:]))


SENSOR = pose(0.1, 1.2, -0.3, 0.2, 0.01, 0.02)
RIGS = Rigs({index: Mount(0, index % 2, index // 2, SENSOR if index % 2 else np.eye(4)) for index in range(4)})


def test_frames_are_moments_and_photos_in_no_rig_stand_alone() -> None:
    assert RIGS.frames == {0: [0, 1], 1: [2, 3]} and RIGS.moments(6) == [[0, 1], [2, 3], [4], [5]]
    turned = Rigs({index: Mount(0, index, 0, pose(0, index, 0, 0, 0, 0)) for index in range(2)})
    assert turned.apart([(0, 1), (1, 2)]) == [(1, 2)] and RIGS.apart([(0, 1), (1, 2)]) == [(0, 1), (1, 2)]
    assert RIGS.links() == [(0, 1), (2, 3)] and RIGS.has_baseline and not NO_RIGS.has_baseline
    assert RIGS.renumbered({2: 0, 3: 1}).frames == {1: [0, 1]}


def test_one_pose_of_a_frame_tells_the_others() -> None:
    world_from_cam = {1: pose(0.3, -0.2, 0.5, 1, 2, 3)}
    poses = RIGS.completed(world_from_cam)
    assert sorted(poses) == [0, 1]
    np.testing.assert_allclose(inverse(poses[1]) @ poses[0], SENSOR, atol=1e-12)
