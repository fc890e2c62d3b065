"""Rigs without given poses: what a synthetic rig of three cameras took tells where these are to one another."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.poses import (
    from_rotation_translation,
    inverse,
    rotation_angle,
    rotation_from_rotvec,
    transform_points,
)
from dune_cli.geometry.rigs import Mount, Rigs, mean_pose
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.sfm.cameras import share_cameras
from dune_cli.sfm.mapper import MappingConfig
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.rig_estimation import map_in_rigs
from dune_cli.sfm.verification import verify_pairs

MOMENTS, SENSORS = 5, 3
CAMERA = Camera("PINHOLE", (320.0, 320.0, 239.5, 179.5), 480, 360)
NOISE_PX = 0.3


def pose(*vector: float) -> np.ndarray:
    return from_rotation_translation(rotation_from_rotvec(np.array(vector[:3])), np.array(vector[3:]))


SENSOR_FROM_RIG = [np.eye(4), pose(0.02, -0.3, 0.01, -0.4, 0.02, 0.05), pose(-0.25, 0.05, 0.3, 0.1, -0.3, 0.1)]
UNKNOWN = np.full((4, 4), np.nan)


def world_from_cam(moment: int, sensor: int) -> np.ndarray:
    path = pose(0.05 * np.sin(moment), 0.1 * moment - 0.2, 0.03 * moment, 0.6 * moment - 1.2, 0.2 * np.cos(moment), 0)
    return path @ inverse(SENSOR_FROM_RIG[sensor])


def rigs(poses: list[np.ndarray], estimated: set[tuple[int, int]]) -> Rigs:
    mounts = {SENSORS * m + s: Mount(0, s, m, poses[s]) for m in range(MOMENTS) for s in range(SENSORS)}
    return Rigs(mounts, {(0, s): f"cam{s}/" for s in range(SENSORS)}, frozenset(estimated))


def test_the_pose_of_each_camera_in_its_rig_is_estimated(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    points = rng.uniform((-4, -3, 3), (4, 3, 7), (500, 3))
    keypoints, seen = [], []
    for index in range(MOMENTS * SENSORS):
        pixels = CAMERA.project(transform_points(inverse(world_from_cam(*divmod(index, SENSORS))), points))
        inside = np.flatnonzero(((pixels > 0) & (pixels < (480, 360))).all(-1))
        keypoints.append(pixels[inside] + NOISE_PX * rng.standard_normal((len(inside), 2)))
        seen.append(inside)
    matches = {}
    for i, j in combinations(range(len(seen)), 2):
        both = np.intersect1d(seen[i], seen[j])
        matches[i, j] = np.stack([np.searchsorted(seen[i], both), np.searchsorted(seen[j], both)], axis=1)
    colors = tuple(np.zeros((len(own), 3), np.uint8) for own in keypoints)
    found = Correspondences(tuple(keypoints), colors, (1.0,) * len(seen), matches)
    unknown = rigs([np.eye(4), UNKNOWN, UNKNOWN], {(0, 1), (0, 2)})
    assert not unknown.has_baseline and len(unknown.given().mounts) == MOMENTS
    cameras = share_cameras([PhotoCamera(CAMERA, "given", lens_known=True)] * len(seen), unknown)

    def picture(index: int) -> None:
        raise AssertionError("no match is static")

    verified = verify_pairs(found, cameras, 0, picture)
    mapped = map_in_rigs(found, verified, cameras, MappingConfig(), tmp_path, {}, None)
    assert len(mapped.models[0].world_from_cam) == len(seen)
    sensors, unit = mapped.cameras.rigs.sensors(0), np.linalg.norm(SENSOR_FROM_RIG[1][:3, 3])
    scale = unit / np.linalg.norm(sensors[1][:3, 3])
    for sensor, true in enumerate(SENSOR_FROM_RIG):
        assert np.degrees(rotation_angle(sensors[sensor][:3, :3] @ true[:3, :3].T)) < 0.05
        np.testing.assert_allclose(scale * sensors[sensor][:3, 3], true[:3, 3], atol=0.005)
    for photo, own in mapped.models[0].world_from_cam.items():  # the photos of each moment are where the rig holds them
        held = inverse(own) @ mapped.models[0].world_from_cam[photo - photo % SENSORS]
        np.testing.assert_allclose(held, sensors[photo % SENSORS], atol=1e-9)
    assert not mapped.cameras.rigs.has_baseline  # lengths are as unknown as without a rig
    assert "cam1/: its pose in the rig was estimated from 5 moments" in mapped.notes[0]


def test_wrong_moments_have_no_part_and_sensors_without_any_stand_alone() -> None:
    unknown = rigs([np.eye(4), UNKNOWN, UNKNOWN], {(0, 1), (0, 2)})
    placed = {photo: world_from_cam(*divmod(photo, SENSORS)) for photo in unknown.mounts if photo % SENSORS < 2}
    placed[1] = placed[1] @ pose(0.3, 0, 0, 1, 0, 0)
    found = unknown.fitted(placed)
    np.testing.assert_allclose(found.sensors(0)[1], SENSOR_FROM_RIG[1], atol=1e-12)
    assert found.estimated == {(0, 1)} and 2 not in found.mounts and 1 in found.mounts
    assert replace(found, estimated=frozenset()).has_baseline


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_mean_of_equal_poses_is_that_pose(count: int) -> None:
    one = pose(0.4, -2, 0.3, 1, 2, 3)
    np.testing.assert_allclose(mean_pose(np.stack([one] * count)), one, atol=1e-12)
