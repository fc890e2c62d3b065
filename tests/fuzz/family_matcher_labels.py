"""What `dune train matcher` keeps of a scene: a teacher's matches and a map; and the cameras.json beside its photos."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np

from dune_cli.errors import JobFailed
from dune_cli.training.matcher import sfm_cache
from dune_cli.training.matcher.scenes import TrainingScene
from dune_cli.training.matcher.sequences import RealPair, known_cameras, real_pairs
from dune_cli.training.matcher.sfm_cache import MappedFrames
from dune_cli.training.matcher.teacher_matches import SceneMatches, read_matches, write_matches
from fuzz.harness import Sample

FRAMES, POINTS = 4, 30
K = np.array([[100.0, 0, 31.5], [0, 100, 23.5], [0, 0, 1]])


def samples(folder: Path) -> Sequence[Sample]:
    photos = tuple(folder / "wall" / f"{number}.jpg" for number in range(FRAMES))
    photos[0].parent.mkdir()
    for path in photos:
        path.write_text(path.name)
    scene = TrainingScene("wall", photos, False)
    found, mapped = _matches(), _map()
    write_matches(folder / "labels", scene, found)
    with mock.patch.object(sfm_cache, "map_scene", lambda *_: mapped):
        sfm_cache.cached_map(found, folder / "labels", 0)
    files = {path.name: path.read_bytes() for path in (folder / "labels").iterdir()}
    with mock.patch.object(sfm_cache, "map_scene", lambda *_: mapped):
        wanted = real_pairs([scene], folder / "labels", 0)
    cameras = {"name": "wall", "frames": [_frame(number) for number in range(FRAMES)]}

    def read(case: Path) -> list[RealPair]:
        with mock.patch.object(sfm_cache, "map_scene", lambda *_: mapped):
            pairs = real_pairs([scene], case, 0)
        if not pairs:
            raise JobFailed("the teacher is asked again")
        return pairs

    def read_cameras(case: Path) -> MappedFrames | None:
        beside = TrainingScene("wall", tuple(case / path.name for path in photos), False)
        return known_cameras(beside, found)

    def accept(pairs: list[RealPair]) -> None:
        assert len(pairs) == len(wanted)
        for pair, right in zip(pairs, wanted):
            assert pair.photos == right.photos and pair.view_angle_deg == right.view_angle_deg
            for name in ("points0", "points1", "F", "K0", "cam1_from_cam0"):
                assert np.array_equal(getattr(pair, name), getattr(right, name))

    return [
        Sample(files, read, accept),
        Sample(
            {name: files[name] for name in files if "matches" in name},
            lambda case: read_matches(case, scene),
            lambda value: _are_equal(value, found),
        ),
        Sample({"cameras.json": json.dumps(cameras).encode()}, read_cameras, _is_map),
    ]


def _pose(number: int) -> np.ndarray:
    pose = np.eye(4)
    angle = 0.1 * number
    pose[[0, 0, 2, 2], [0, 2, 0, 2]] = np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)
    pose[:3, 3] = number, 0.1, 0
    return pose


def _frame(number: int) -> dict[str, object]:
    return {"file": f"{number}.jpg", "K": K.tolist(), "world_from_cam": _pose(number).tolist()}


def _matches() -> SceneMatches:
    rng = np.random.default_rng(0)
    points = tuple(rng.uniform(0, 48, (POINTS, 2)).astype(np.float32) for _ in range(FRAMES))
    pairs = np.array([(i, i + 1) for i in range(FRAMES - 1)], np.int32)
    each = np.stack([np.arange(POINTS, dtype=np.int32)] * 2, 1)
    scores = tuple(np.ones(POINTS, np.float32) for _ in pairs)
    names = tuple(f"{number}.jpg" for number in range(FRAMES))
    sizes = np.array([[64, 48]] * FRAMES, np.int32)
    return SceneMatches("wall", names, sizes, points, pairs, tuple(each for _ in pairs), scores)


def _map() -> MappedFrames:
    poses = np.linalg.inv([_pose(number) for number in range(FRAMES)])
    return MappedFrames(np.arange(FRAMES), np.array([K] * FRAMES), poses, (np.arange(POINTS),) * FRAMES)


def _are_equal(value: SceneMatches | None, found: SceneMatches) -> None:
    if value is not None:
        assert value.names == found.names and np.array_equal(value.pairs, found.pairs)
        for name in ("points", "matches", "scores"):
            assert all(np.array_equal(a, b) for a, b in zip(getattr(value, name), getattr(found, name), strict=True))


def _is_map(mapped: MappedFrames | None) -> None:
    if mapped is not None:
        assert mapped.K.shape == (FRAMES, 3, 3) and np.isfinite(mapped.K).all() and (mapped.K[:, 0, 0] > 0).all()
        turns = mapped.cam_from_world[:, :3, :3]
        assert np.isfinite(mapped.cam_from_world).all()
        assert np.allclose(turns @ np.swapaxes(turns, 1, 2), np.eye(3), atol=0.05)
