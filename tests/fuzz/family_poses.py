"""Pose files: JSON of all kinds, TUM and KITTI trajectories, with and without the photos' names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from dune_cli.io.pose_files import read_poses
from fuzz.harness import Sample

NAMES = [f"photos/{number:06d}.jpg" for number in range(4)]


def samples(folder: Path) -> Sequence[Sample]:
    rng = np.random.default_rng(0)
    turns = Rotation.random(4, random_state=0)
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = turns.as_matrix(), rng.normal(size=(4, 3)) * 5
    K = [[500.0, 0, 320], [0, 500, 240], [0, 0, 1]]
    listed = poses.tolist()
    trees = [
        dict(zip(NAMES, listed)),
        {
            "schema": "dune.scene/1",
            "cameras": [
                {"image": n, "width": 640, "height": 480, "K": K, "world_from_cam": p, "registered": True}
                for n, p in zip(NAMES, listed)
            ],
        },
        {
            "name": "x",
            "frames": [
                {"file": n, "K": K, "T_cam_to_world": p, "width": 640, "height": 480} for n, p in zip(NAMES, listed)
            ],
        },
        {
            "camera_model": "OPENCV",
            "frames": [
                {"file_path": n, "w": 640, "h": 480, "fl_x": 500, "fl_y": 500, "transform_matrix": p}
                for n, p in zip(NAMES, listed)
            ],
        },
    ]
    quaternions = turns.as_quat()
    tum = "".join(
        f"{i} {' '.join(f'{v:.9f}' for v in (*pose[:3, 3], *quaternions[i]))}\n" for i, pose in enumerate(poses)
    )
    kitti = "".join(" ".join(f"{v:.9e}" for v in pose[:3].ravel()) + "\n" for pose in poses)
    files = [("p.json", json.dumps(tree).encode()) for tree in trees]
    files += [("p.txt", f"# timestamp tx ty tz qx qy qz qw\n{tum}".encode()), ("p.txt", kitti.encode())]
    return [
        Sample({name: content}, lambda case, name=name, names=names: read_poses(case / name, names), _are_poses)
        for name, content in files
        for names in (None, NAMES)
    ]


def _are_poses(poses: dict[str, np.ndarray]) -> None:
    assert poses
    for pose in poses.values():
        assert pose.shape == (4, 4) and np.isfinite(pose).all() and np.array_equal(pose[3], (0, 0, 0, 1))
        assert np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-9) and np.linalg.det(pose[:3, :3]) > 0
        assert np.abs(pose[:3, 3]).max() <= 1e12
