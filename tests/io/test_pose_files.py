"""Poses in: every form gives back the poses that were written, and what is none gets one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dune_cli.errors import UserError
from dune_cli.geometry import poses
from dune_cli.io.colmap.write import write_colmap
from dune_cli.io.meshes import Frustum
from dune_cli.io.pose_files import read_poses, write_transforms

NAMES = ["a.jpg", "b.jpg", "c.jpg"]
RNG = np.random.default_rng(0)
POSES = [
    poses.from_rotation_translation(poses.rotation_from_rotvec(RNG.normal(size=3)), RNG.normal(size=3)) for _ in NAMES
]
K = np.array([[300.0, 0, 160], [0, 310, 120], [0, 0, 1]])
FRUSTA = [Frustum(K, pose, 320, 240, name) for name, pose in zip(NAMES, POSES)]


def tum(folder: Path, stamps: list[float]) -> Path:
    lines = ["# timestamp tx ty tz qx qy qz qw", ""]
    for stamp, pose in zip(stamps, POSES):
        w, x, y, z = poses.quaternion_from_rotation(pose[:3, :3])
        lines.append(" ".join(map(repr, map(float, (stamp, *pose[:3, 3], x, y, z, w)))))
    (folder / "poses.txt").write_text("\n".join(lines) + "\n")
    return folder / "poses.txt"


def kitti(folder: Path) -> Path:
    (folder / "00.txt").write_text("\n".join(" ".join(map(repr, pose[:3].ravel().tolist())) for pose in POSES))
    return folder / "00.txt"


def written(folder: Path, tree: object) -> Path:
    (folder / "poses.json").write_text(json.dumps(tree))
    return folder / "poses.json"


def form(kind: str, folder: Path) -> Path:
    matrices = [pose.tolist() for pose in POSES]
    if kind == "names":
        return written(folder, dict(zip(NAMES, matrices)))
    if kind == "scene":
        cameras = [{"image": name, "world_from_cam": m, "registered": True} for name, m in zip(NAMES, matrices)]
        lost = {"image": "lost.jpg", "world_from_cam": None, "registered": False}
        return written(folder, {"schema": "dune.scene/1", "cameras": [*cameras, lost]})
    if kind == "cameras":
        frames = [{"file": f"images/{name}", "T_cam_to_world": m} for name, m in zip(NAMES, matrices)]
        return written(folder, {"frames": frames})
    if kind == "transforms":
        write_transforms(folder / "transforms.json", FRUSTA, [folder / "images" / name for name in NAMES])
        return folder / "transforms.json"
    if kind.startswith("colmap"):
        write_colmap(folder / "model" / "sparse" / "0", FRUSTA, binary=kind == "colmap binary")
        return folder / "model"
    return tum(folder, [0.5, 1.5, 2.5]) if kind == "tum" else kitti(folder)


KINDS = ["names", "scene", "cameras", "transforms", "colmap binary", "colmap text", "tum", "kitti"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_gives_back_the_poses(tmp_path: Path, kind: str) -> None:
    found = read_poses(form(kind, tmp_path), NAMES)
    assert list(found) == NAMES
    np.testing.assert_allclose(np.stack(list(found.values())), np.stack(POSES), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS[:6])
def test_names_are_found_by_path_tails_and_stems(tmp_path: Path, kind: str) -> None:
    path = form(kind, tmp_path)
    found = read_poses(path, ["/photos/b.jpg", "other/c.png"])
    np.testing.assert_allclose(found["/photos/b.jpg"], POSES[1], atol=1e-9)
    np.testing.assert_allclose(found["other/c.png"], POSES[2], atol=1e-9)
    assert {Path(name).name for name in read_poses(path)} == set(NAMES)


def test_the_longest_tail_decides(tmp_path: Path) -> None:
    path = written(tmp_path, {"left/0.jpg": POSES[0].tolist(), "right/0.jpg": POSES[1].tolist()})
    found = read_poses(path, ["/data/right/0.jpg", "/data/left/0.jpg"])
    np.testing.assert_allclose(found["/data/right/0.jpg"], POSES[1], atol=1e-9)
    with pytest.raises(UserError, match="share another image's pose"):
        read_poses(path, ["/x/left/0.jpg", "/y/left/0.jpg"])


def test_trajectories_by_time_and_line_number(tmp_path: Path) -> None:
    path = tum(tmp_path, [1305031102.175304, 1305031102.211214, 1305031102.243211])
    found = read_poses(path, ["rgb/1305031102.211200.png"])
    np.testing.assert_allclose(found["rgb/1305031102.211200.png"], POSES[1], atol=1e-9)
    np.testing.assert_allclose(read_poses(kitti(tmp_path), ["000002.png"])["000002.png"], POSES[2], atol=1e-12)
    assert list(read_poses(kitti(tmp_path))) == ["0", "1", "2"]
    assert next(iter(read_poses(path))) == "1305031102.175304"


def test_numbers_that_are_no_line_numbers_fall_back_to_the_order(tmp_path: Path) -> None:
    found = read_poses(kitti(tmp_path), ["1.png", "2.png", "3.png"])
    np.testing.assert_allclose(found["1.png"], POSES[0], atol=1e-12)


def test_nerfstudio_s_file_field_by_field(tmp_path: Path) -> None:
    camera = Frustum(K, np.eye(4), 320, 240)
    write_transforms(tmp_path / "out" / "transforms.json", [camera], [tmp_path / "a.jpg"], tmp_path / "out" / "s.ply")
    tree = json.loads((tmp_path / "out" / "transforms.json").read_text())
    (frame,) = tree["frames"]
    assert (tree["camera_model"], tree["ply_file_path"], frame["file_path"]) == ("OPENCV", "s.ply", "../a.jpg")
    assert [frame[key] for key in ("w", "h", "fl_x", "fl_y", "cx", "cy")] == [320, 240, 300, 310, 160.5, 120.5]
    assert frame["transform_matrix"] == [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]]
    with pytest.raises(ValueError, match="1 views for 2"):
        write_transforms(tmp_path / "t.json", [camera], ["a", "b"])


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([], "holds no poses"),
        ({}, "holds no poses"),
        ({"a.jpg": [[1, 2], [3, 4]]}, "'a.jpg' is not a list of 4 x 4 numbers"),
        ({"a.jpg": np.diag([2.0, 1, 1, 1]).tolist()}, "'a.jpg' is no rigid pose"),
        ({"a.jpg": np.diag([-1.0, 1, 1, 1]).tolist()}, "is no rigid pose"),
        ({"frames": [{"file_path": "a.jpg"}]}, "entry 0, lacks file_path or transform_matrix"),
        ({"frames": [{"file": "a", "T_cam_to_world": np.eye(4).tolist()}] * 2}, "names a twice"),
        ({"z.jpg": np.eye(4).tolist()}, "a pose for none of the 3 images; it names z.jpg"),
    ],
)
def test_json_without_poses_is_refused(tmp_path: Path, tree: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_poses(written(tmp_path, tree), NAMES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("1 2 3\n", "line 1, has not the 8 or 12"),
        ("0 0 0 0 0 0 0 0\n", "no unit quaternion"),
        ("0 0 0 0 0 0 0 1\nx\n", "line 2"),
        ("0 0 0 0 0 0 0 1\n", "1 poses for 3 images whose names are no timestamps"),
        ("1 0 0 0 0 1 0 0 0 0 2 0\n", "line 0 is no rigid pose"),
    ],
)
def test_trajectories_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_poses(tmp_path / "t.txt", NAMES)


@pytest.mark.parametrize("file", ["cameras", "images", "points3D"])
@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "gone"])
@pytest.mark.parametrize("binary", [True, False])
def test_a_broken_model_is_one_sentence(tmp_path: Path, file: str, damage: str, binary: bool) -> None:
    points, tracks = RNG.normal(size=(5, 3)), [[(0, 1.0, 2.0), (1, 3.0, 4.0)]] * 5
    write_colmap(tmp_path / "m", FRUSTA, points, None, tracks, binary=binary)
    path = tmp_path / "m" / f"{file}.{'bin' if binary else 'txt'}"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        noise = np.random.default_rng(1).integers(0, 256, len(data), dtype=np.uint8).tobytes()
        path.write_bytes({"cut": data[: len(data) * 2 // 3], "empty": b"", "noise": noise}[damage])
    if file == "points3D" and not binary and damage in ("empty", "cut"):
        return  # a text model with fewer points is whole
    with pytest.raises(UserError, match=r"COLMAP model") as raised:
        read_poses(tmp_path / "m", NAMES)
    assert "\n" not in str(raised.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_poses(tmp_path / "none.json", NAMES)
    with pytest.raises(UserError, match="no COLMAP model"):
        read_poses(tmp_path, NAMES)


def test_the_shared_sets_are_read(shared_data: Path) -> None:
    for name in ("hololens", "lund", "sacre_coeur"):
        root = shared_data / "multiview" / name
        images = [path.name for path in sorted((root / "images").iterdir())]
        assert len(read_poses(root / "cameras.json", images)) == len(images)
