"""Files of joints, in their three layouts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dune_cli.io.joint_files import COCO_NAMES, LARGEST_M, LARGEST_PX, JointSet, read_joint_file
from fuzz.harness import Sample


def samples(folder: Path) -> Sequence[Sample]:
    keypoints = [float(n) for k in range(17) for n in (20 * k, 300 - 11.5 * k, k % 3)]
    coco = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "annotations": [{"image_id": 1, "keypoints": keypoints}, {"image_id": 2, "keypoints": keypoints}],
        "categories": [{"keypoints": list(COCO_NAMES)}],
    }
    openpose = {"people": [{"pose_keypoints_2d": [float(n) for k in range(25) for n in (k, 9 * k, 0.5)]}] * 2}
    metres = {
        "joints": ["LeftHip", "RightHip", "LeftKnee", "head_top"],
        "axes": "y-up",
        "people": [{"xyz": [[0.1, 1, -3], [-0.1, 1.01, -3], None, [0, 1.8, -3.05]]}],
    }
    return [
        Sample({"joints.json": json.dumps(content).encode()}, _read, _are_joints)
        for content in (coco, openpose, metres)
    ]


def _read(case: Path) -> list[JointSet]:
    return list(read_joint_file(case / "joints.json").by_photo.values())


def _are_joints(found: list[JointSet]) -> None:
    for one in found:
        people, joints, axes = one.values.shape
        assert one.confidence.shape == (people, joints) and len(one.names) == joints and axes == 2 + one.metric
        assert np.isfinite(one.values).all() and np.abs(one.values).max(initial=0) <= max(LARGEST_PX, LARGEST_M)
        assert ((one.confidence >= 0) & (one.confidence <= 1)).all()
