"""Structure from motion of a made-up scene gives back its cameras; pairs and their labels follow from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dune_cli.geometry.epipolar import pose_error
from dune_cli.geometry.poses import rotation_from_rotvec
from dune_cli.training.matcher import sequences, sfm_cache
from dune_cli.training.matcher.finalize import select_validation_pairs
from dune_cli.training.matcher.loss import epipolar_distance
from dune_cli.training.matcher.scenes import TrainingScene
from dune_cli.training.matcher.sfm_cache import map_scene
from dune_cli.training.matcher.teacher_matches import SceneMatches, write_matches

SIZE = (448, 336)
FRAMES = 6
K = np.array([[500.0, 0, 223.5], [0, 500, 167.5], [0, 0, 1]])


def cameras() -> np.ndarray:
    """Around the points, 8 degrees apart, all looking at their middle."""
    poses = []
    for index in range(FRAMES):
        pose = np.eye(4)
        pose[:3, :3] = rotation_from_rotvec(np.array([0.02 * index, np.radians(8) * index, 0]))
        pose[:3, 3] = 0, 0, 5
        poses.append(pose)
    return np.array(poses)


@pytest.fixture(scope="module")
def found() -> SceneMatches:
    rng = np.random.default_rng(0)
    world = rng.uniform(-1, 1, (400, 3))
    points = []
    for pose in cameras():
        seen = (world @ pose[:3, :3].T + pose[:3, 3]) @ K.T
        points.append((seen[:, :2] / seen[:, 2:] + rng.normal(0, 0.2, (400, 2))).astype(np.float32))
    pairs = np.array([(i, i + step) for step in (1, 2) for i in range(FRAMES - step)], np.int32)
    each = np.stack([np.arange(400)] * 2, 1).astype(np.int32)
    wrong = rng.integers(0, 400, (40, 2)).astype(np.int32)
    matches = tuple(np.concatenate([each[40:], wrong[np.argsort(wrong[:, 0])]]) for _ in pairs)
    sizes = np.array([SIZE] * FRAMES, np.int32)
    names = tuple(f"{i:04d}.jpg" for i in range(FRAMES))
    return SceneMatches("rock", names, sizes, tuple(points), pairs, matches, tuple(np.ones(400) for _ in pairs))


def scene_of(found: SceneMatches, tmp_path: Path, held_out: bool = False) -> TrainingScene:
    """The scene of the matches, its photos being files of any content."""
    folder = tmp_path / found.scene
    folder.mkdir(exist_ok=True)
    for name in found.names:
        (folder / name).write_text(name)
    return TrainingScene(found.scene, tuple(folder / name for name in found.names), held_out)


def check(pair: sequences.RealPair) -> None:
    i, j = (int(path.stem) for path in pair.photos)
    truth = cameras()[j] @ np.linalg.inv(cameras()[i])
    assert max(np.degrees(pose_error(pair.cam1_from_cam0, truth))) < 2
    assert pair.F is not None
    assert np.median(epipolar_distance(pair.points0, pair.points1, pair.F)) < 1
    assert pair.view_angle_deg == pytest.approx(8 * (j - i), abs=2)


def test_the_cameras_come_back(found: SceneMatches) -> None:
    mapped = map_scene(found, 0)
    assert mapped is not None
    assert mapped.frames.tolist() == list(range(FRAMES))
    np.testing.assert_allclose(mapped.K[:, 0, 0], 500, rtol=0.1)


def test_pairs_are_wider_than_what_the_teacher_matched(found: SceneMatches, tmp_path: Path) -> None:
    scene = scene_of(found, tmp_path, True)
    write_matches(tmp_path / "labels", scene, found)
    pairs = sequences.real_pairs([scene], tmp_path / "labels", 0)
    assert len(pairs) == FRAMES * (FRAMES - 1) // 2 > len(found.pairs)
    for pair in pairs:
        check(pair)
    assert [round(pair.view_angle_deg / 8) for pair in select_validation_pairs(pairs, 2)] == [2, 5]
    assert select_validation_pairs(pairs, 0) == []


def test_known_cameras_go_before_structure_from_motion(found: SceneMatches, tmp_path: Path) -> None:
    scene = scene_of(found, tmp_path)
    frames = [
        {"file": name, "K": K.tolist(), "world_from_cam": np.linalg.inv(pose).tolist()}
        for name, pose in zip(found.names, cameras())
    ]
    (tmp_path / "rock" / "cameras.json").write_text(json.dumps({"frames": frames}))
    write_matches(tmp_path / "labels", scene, found)
    pairs = sequences.real_pairs([scene], tmp_path / "labels", 0)
    assert len(pairs) == len(found.pairs)
    assert all(np.allclose(pair.K0, K) for pair in pairs)
    assert min(len(pair.points0) for pair in pairs) > 300
    for pair in pairs:
        check(pair)


def test_two_frames_give_no_map(found: SceneMatches) -> None:
    two = SceneMatches(
        "rock", found.names[:2], found.sizes[:2], found.points[:2], found.pairs[:1], found.matches[:1], found.scores[:1]
    )
    assert map_scene(two, 0) is None


def test_a_scene_is_mapped_once(found: SceneMatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments):
        calls.append(1)
        return map_scene(*arguments)

    monkeypatch.setattr(sfm_cache, "map_scene", counted)
    write_matches(tmp_path, scene_of(found, tmp_path), found)
    first, second = (sfm_cache.cached_map(found, tmp_path, 0) for _ in range(2))
    assert len(calls) == 1
    for name in ("frames", "K", "cam_from_world"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    for one, other in zip(first.points, second.points, strict=True):
        np.testing.assert_array_equal(one, other)
    sfm_cache.cached_map(found, tmp_path, 1)
    assert len(calls) == 2  # another seed
    path = tmp_path / "rock.map.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    sfm_cache.cached_map(found, tmp_path, 1)
    assert len(calls) == 3  # a cut file


def test_that_a_scene_cannot_be_mapped_is_kept_too(tmp_path: Path, found: SceneMatches, monkeypatch) -> None:
    two = SceneMatches(
        "rock", found.names[:2], found.sizes[:2], found.points[:2], found.pairs[:1], found.matches[:1], found.scores[:1]
    )
    write_matches(tmp_path, scene_of(two, tmp_path), two)
    assert sfm_cache.cached_map(two, tmp_path, 0) is None
    monkeypatch.setattr(sfm_cache, "map_scene", None)
    assert sfm_cache.cached_map(two, tmp_path, 0) is None
