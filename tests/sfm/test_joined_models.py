"""Models that share photos become one, if these have the same poses in both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dune_cli.geometry.cameras import K_from_focal
from dune_cli.geometry.poses import from_rotation_translation, rotation_from_rotvec
from dune_cli.geometry.sim3 import move_poses
from dune_cli.io.cache import WorkFolder
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.matchers.filtering import Thumbnail
from dune_cli.matchers.sift import Sift
from dune_cli.sfm import mapper
from dune_cli.sfm.cameras import share_cameras
from dune_cli.sfm.features import extract_features
from dune_cli.sfm.joined_models import joined_poses
from dune_cli.sfm.matching import match_pairs
from dune_cli.sfm.pairs import sequential_pairs
from dune_cli.sfm.scene import SfmModel
from dune_cli.sfm.verification import verify_pairs
from support.many_photos import HEIGHT, WIDTH, arc, picture, write

TRUTH = {index: arc(index) for index in range(12)}


def part(photos: range, moved: np.ndarray | None = None, noise: float = 0.0) -> SfmModel:
    """The photos of an arc, in a world of its own."""
    moved = np.eye(4) if moved is None else moved
    random = np.random.default_rng(0)
    poses = {index: move_poses(moved, TRUTH[index]) for index in photos}
    for pose in poses.values():
        pose[:3, 3] += noise * random.normal(size=3)
    return SfmModel({}, poses, np.zeros((0, 3)), np.zeros(0), {})


@pytest.fixture
def other_world() -> np.ndarray:
    world = from_rotation_translation(rotation_from_rotvec(np.array([0.3, -0.2, 1.0])), np.array([4.0, -2.0, 7.0]))
    world[:3, :3] *= 3.0
    return world


def test_the_poses_of_both(other_world: np.ndarray) -> None:
    poses = joined_poses([part(range(8)), part(range(3, 12), other_world)])
    assert sorted(poses) == list(range(12))
    for index, pose in poses.items():
        np.testing.assert_allclose(pose, TRUTH[index], atol=1e-9)


def test_a_third_model_that_only_the_second_one_touches(other_world: np.ndarray) -> None:
    models = [part(range(6)), part(range(1, 9), other_world), part(range(4, 12))]
    assert sorted(joined_poses(models)) == list(range(12))


def test_models_that_differ_stay_apart(other_world: np.ndarray) -> None:
    one = part(range(8))
    assert joined_poses([one, part(range(3, 12), other_world, noise=1.0)]) == one.world_from_cam
    assert joined_poses([one, part(range(5, 12), other_world)]) == one.world_from_cam  # three photos tell too little
    assert joined_poses([one, part(range(1, 7), other_world)]) == one.world_from_cam  # nothing new


def test_joined_models_are_adjusted(tmp_path: Path, other_world: np.ndarray) -> None:
    """A part with poses that are a little off is drawn to the other one by the points of both."""
    count = 9
    matcher, cache = Sift(320, 1500), WorkFolder(tmp_path / "work")
    images = extract_features(write(tmp_path / "photos", range(count)), matcher, cache)
    found = match_pairs(images, sequential_pairs(count, 4), matcher, cache)
    K = K_from_focal(300.0, WIDTH, HEIGHT)
    cameras = share_cameras([PhotoCamera.of_matrix(K, "intrinsics", WIDTH, HEIGHT)] * count)
    verified = verify_pairs(found, cameras, 0, lambda index: Thumbnail.of(picture(index)))
    mapping = mapper._Mapping(found, verified, cameras, mapper.MappingConfig(), {}, {}, mapper.INITIAL_PAIRS)
    whole = mapping.first(tmp_path).models[0]
    assert len(whole.world_from_cam) == count
    one, other = (
        replace(whole, world_from_cam={i: move_poses(world, whole.world_from_cam[i]) for i in photos})
        for photos, world in ((range(7), np.eye(4)), (range(2, count), other_world))
    )
    spread = np.linalg.norm(np.ptp([pose[:3, 3] for pose in other.world_from_cam.values()], axis=0))
    for index in (7, 8):
        other.world_from_cam[index][:3, 3] += 0.01 * spread
    models = mapping._joined([replace(one, observations={}), replace(other, observations={})], tmp_path)
    assert len(models) == 1 and len(models[0].world_from_cam) == count
    assert models[0].error_px < 1.1 * whole.error_px
    centres = [[model.world_from_cam[i][:3, 3] for i in range(count)] for model in (models[0], whole)]
    steps = [np.linalg.norm(np.diff(of, axis=0), axis=1) for of in centres]
    assert np.ptp(steps[0] / steps[1]) < 0.005 * np.mean(steps[0] / steps[1])
    # nothing is joined where the whole explains less than the largest part
    best = replace(one, points_world=whole.points_world, errors_px=0 * whole.errors_px)
    seen = {0: (np.zeros(10**6, np.int64), np.zeros(10**6, np.int64))}
    assert mapping._joined([replace(best, observations=seen), other], tmp_path)[0].observations is seen
