"""Files of joints: three layouts, names, and the sentences for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dune_cli.errors import UserError
from dune_cli.io.joint_files import COCO_NAMES, OPENPOSE_NAMES, canonical_name, read_joint_file


def written(folder: Path, content: Any) -> Path:
    path = folder / "joints.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("LeftShoulder", "left_shoulder"),
        ("left_shoulder", "left_shoulder"),
        ("RShoulder", "right_shoulder"),
        ("shoulder.L", "left_shoulder"),
        ("LeftUpLeg", "left_hip"),
        ("R_Knee", "right_knee"),
        ("LeftToe", "left_foot_index"),
        ("right big toe", "right_foot_index"),
        ("Head_end", "head_top"),
        ("nose", "nose"),
        ("Root", "root"),
    ],
)
def test_names(word: str, name: str) -> None:
    assert canonical_name(word) == name


def test_coco(tmp_path: Path) -> None:
    keypoints = [number for k in range(17) for number in (10 * k, 5 * k + 0.5, k % 3)]
    content = {
        "images": [{"id": 7, "file_name": "folder/a.jpg"}, {"id": 9, "file_name": "b.jpg"}],
        "annotations": [{"image_id": 7, "keypoints": keypoints}, {"image_id": 9}],
        "categories": [{"keypoints": list(COCO_NAMES)}],
    }
    file = read_joint_file(written(tmp_path, content))
    found = file.of(Path("elsewhere/a.jpg"), 2)
    assert found.names == COCO_NAMES and not found.metric
    assert found.confidence[0, :3].tolist() == [0, 0.7, 1]
    assert found.values[0, 2].tolist() == [20, 10.5] and found.values.shape == (1, 17, 2)
    assert len(file.of(Path("b.jpg"), 2).values) == 0
    with pytest.raises(UserError, match=r"has no joints of c\.jpg; its photos: a\.jpg, b\.jpg"):
        file.of(Path("c.jpg"), 2)


def test_coco_results(tmp_path: Path) -> None:
    """A list of detections of one image, with confidences."""
    file = read_joint_file(written(tmp_path, [{"image_id": 3, "keypoints": [1, 2, 0.4] * 17, "score": 0.9}]))
    assert file.of(Path("any.jpg"), 1).confidence[0, 0] == 0.4
    with pytest.raises(UserError, match="joints of one photo, and 2 were given"):
        file.of(Path("any.jpg"), 2)


@pytest.mark.parametrize("count", [18, 25])
def test_openpose(count: int, tmp_path: Path) -> None:
    numbers = [number for k in range(count) for number in (k, 2 * k, 0.5)]
    file = read_joint_file(written(tmp_path, {"version": 1.3, "people": [{"pose_keypoints_2d": numbers}]}))
    found = file.of(Path("a.jpg"), 1)
    assert found.names == OPENPOSE_NAMES[count]
    ankle = found.names.index("left_ankle")
    assert ankle == (13 if count == 18 else 14) and found.values[0, ankle].tolist() == [ankle, 2 * ankle]


def test_nobody(tmp_path: Path) -> None:
    for content in ({"people": []}, {"joints": ["nose"], "people": []}, {"annotations": []}):
        assert len(read_joint_file(written(tmp_path, content)).of(Path("a.jpg"), 1).values) == 0


def test_metres(tmp_path: Path) -> None:
    content = {"joints": ["Nose", "LeftHip"], "axes": "y-up", "people": [{"xyz": [[1, 2, 3], None]}]}
    found = read_joint_file(written(tmp_path, content)).of(Path("a.jpg"), 1)
    assert found.metric and found.names == ("nose", "left_hip")
    assert found.values[0, 0].tolist() == [1, -2, -3] and found.confidence[0].tolist() == [1, 0]
    assert np.isfinite(found.values).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "is no file of joints; allowed: COCO keypoints"),
        ({"people": [{"pose_keypoints_2d": [1] * 60}]}, "has 60 numbers; allowed: 54"),
        ({"people": [{"pose_keypoints_2d": [1] * 54}, {"pose_keypoints_2d": [1] * 75}]}, "18 and of 25 joints"),
        ({"people": [{}]}, "has no 'pose_keypoints_2d'"),
        ({"annotations": [{"image_id": 1, "keypoints": [1, 2]}]}, "17 joints need 51"),
        ({"annotations": [{"image_id": 1, "keypoints": [1, 2, 7] * 17}]}, "a visibility other than 0, 1 and 2"),
        ({"annotations": [{"image_id": 1, "keypoints": [1e9, 2, 2] * 17}]}, "give pixels of the photo"),
        ({"annotations": [{"image_id": n, "keypoints": [1, 2, 2] * 17} for n in (1, 2)]}, "names no images"),
        ({"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 2}]}, "not among the images"),
        ({"joints": ["nose", "Nose"], "people": []}, "must be different names"),
        ({"joints": [3], "people": []}, "a joint's name is not a text"),
        ({"joints": ["nose"], "people": [{"xyz": []}]}, "xyz has 0 joints, and the file names 1"),
        ({"joints": ["nose"], "people": [{"xyz": [[1, 2]]}]}, "is not a list of 1 x 3 numbers"),
        ({"joints": ["nose"], "people": [{"xyz": [[1, 2, 1e6]]}]}, "give metres up to"),
        (
            {"joints": ["nose", "left_foot"], "people": [{"xyz": [[0, 0, 9], [0, 1700, 9]]}]},
            "extends over 1700 m, which is",
        ),
        ({"joints": list("abcd"), "people": [{"xyz": [[1, 2, 3]] * 4}]}, "extends over 0 m, which is no person"),
        ({"joints": ["nose"], "axes": "z-up", "people": []}, "allowed: opencv"),
        (3, "an object is needed"),
    ],
)
def test_faults(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_joint_file(written(tmp_path, content))
    assert "\n" not in str(caught.value)
