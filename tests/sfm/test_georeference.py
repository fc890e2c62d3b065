"""Scenes placed on earth: a simulated flight, wrong fixes, a single flight line, and what does not tell the place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from geometry.test_georeferencing import flight, scene_from_world

from dune_cli.errors import JobFailed
from dune_cli.geometry import cameras, earth, poses
from dune_cli.geometry.sim3 import move_poses
from dune_cli.io.crs import EnuFrame, WorldFrame, open_crs
from dune_cli.io.meshes import Mesh
from dune_cli.sfm import georeference as placing
from dune_cli.sfm.georeference import CameraPositions
from dune_cli.sfm.scene import Calibration, FusedCloud, PointMap, ScaleEstimate, Scene, SparsePoints, View

ORIGIN = np.array([48.137, 11.575, 520.0])
K = cameras.K_from_focal(900.0, 1000, 750)
NOISE_M = 2.0


def scene_of(world_from_cam: np.ndarray) -> Scene:
    """The cameras in a scene with axes and a unit of its own, and the ground below them."""
    scene_from_enu = scene_from_world()
    ground = np.random.default_rng(5).uniform([0, 0, 0], [200, 150, 5], (50, 3))
    views = [
        View(f"p{index:03d}.jpg", 1000, 750, K, "given", move_poses(scene_from_enu, pose))
        for index, pose in enumerate(world_from_cam)
    ]
    points = poses.transform_points(scene_from_enu, ground)
    sparse = SparsePoints.from_full_tracks(
        points, np.zeros((50, 3), np.uint8), np.ones(50), [np.zeros((50, 2))] * len(views)
    )
    return Scene("matches", tuple(views), (), sparse, "arbitrary", "unknown", 0.5, 20.0, ())


def positions_of(enu: np.ndarray, sds_m: float = NOISE_M, **settings: object) -> CameraPositions:
    places = dict(enumerate(earth.geodetic_from_enu(enu, ORIGIN)))
    sds = {index: np.full(3, sds_m) for index in places}
    return CameraPositions(places, sds, True, True, "EXIF", settings.get("attitudes", {}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["ENU", "EPSG:32632"])
def test_a_flight_with_two_metres_of_noise(name: str) -> None:
    """The middle of the ground is within four standard deviations, sigma sqrt(3 / n), and all of 12 wrong fixes of 60
    are named."""
    frame: WorldFrame = EnuFrame(ORIGIN) if name == "ENU" else open_crs(name)
    true = flight()
    rng = np.random.default_rng(1)
    wrong = np.sort(rng.choice(len(true), 12, replace=False))
    enu = true[:, :3, 3] + rng.normal(size=(len(true), 3)) * NOISE_M
    enu[wrong] += rng.choice([-1, 1], (12, 3)) * rng.uniform(15, 500, (12, 3))
    placed = placing.georeference(scene_of(true), positions_of(enu), frame, None, 0)
    assert placed.georeference is not None and placed.sparse is not None and placed.scale == "metric"
    assert placed.georeference.outliers == [f"p{index:03d}.jpg" for index in wrong]
    assert f"12 of 60 positions (EXIF) are wrong and were not used: p{wrong[0]:03d}.jpg" in " ".join(placed.notes)
    assert placed.georeference.sigma == pytest.approx(1.0, abs=0.15)
    offset = placed.georeference.offset
    assert np.abs(placed.sparse.points_world).max() < 400
    centres = np.stack([view.world_from_cam[:3, 3] for view in placed.views]) + offset
    off = centres - frame.from_geodetic(earth.geodetic_from_enu(true[:, :3, 3], ORIGIN))
    limit = NOISE_M * np.sqrt(3 / 48)
    assert np.linalg.norm(off.mean(axis=0)) < 2 * limit
    assert np.sqrt((off**2).sum(axis=1).mean()) < 2 * NOISE_M * np.sqrt(7 / 48)
    back = placed.georeference.geodetic(placed.views[7].world_from_cam[:3, 3])
    assert np.linalg.norm(earth.enu_from_geodetic(back, ORIGIN) - true[7, :3, 3]) < 4 * limit


def test_the_place_does_not_depend_on_the_scenes_own_axes() -> None:
    true = flight()
    enu = true[:, :3, 3] + np.random.default_rng(2).normal(size=(len(true), 3))
    scene, frame = scene_of(true), EnuFrame(ORIGIN)
    one = placing.georeference(scene, positions_of(enu), frame, None, 0)
    other = placing.georeference(scene.transformed(scene_from_world(11)), positions_of(enu), frame, None, 0)
    for a, b in zip(one.views, other.views):
        np.testing.assert_allclose(a.world_from_cam, b.world_from_cam, atol=1e-6)
    np.testing.assert_allclose(one.sparse.points_world, other.sparse.points_world, atol=1e-6)  # type: ignore[union-attr]


def test_one_flight_line_is_turned_by_the_gimbal_or_by_level_photos() -> None:
    true = flight(lines=1)
    true[:, 2, 3] = 80
    enu = true[:, :3, 3] + np.random.default_rng(3).normal(size=(len(true), 3)) * 0.5
    attitudes = {index: pose[:3, :3] for index, pose in enumerate(true)}
    frame = EnuFrame(ORIGIN)
    for settings, told in (({"attitudes": attitudes}, "gimbal"), ({}, "level cameras")):
        placed = placing.georeference(scene_of(true), positions_of(enu, 0.5, **settings), frame, None, 0)
        assert placed.georeference is not None and placed.georeference.roll_from == told
        assert "the positions lie on a line" in " ".join(placed.notes)
        turned = placed.views[3].world_from_cam[:3, :3].T @ true[3, :3, :3]
        assert np.degrees(poses.rotation_angle(turned)) < 4
    aside = true.copy()
    aside[:, :3, :3] = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0.0]])  # x along the line
    with pytest.raises(JobFailed, match="neither gimbal angles nor level photos do; add positions beside the line"):
        placing.georeference(scene_of(aside), positions_of(enu, 0.5), frame, None, 0)
    estimate = placing.scale_by_positions(scene_of(aside), positions_of(enu, 0.5), 0)
    assert estimate is not None and estimate.metres == pytest.approx(1 / 0.03, rel=0.02)


def test_what_does_not_tell_the_place() -> None:
    true = flight()
    scene, rng, frame = scene_of(true), np.random.default_rng(4), EnuFrame(ORIGIN)
    hovering = positions_of(np.array([10, 20, 80.0]) + rng.normal(size=(len(true), 3)))
    with pytest.raises(JobFailed, match=r"positions of 60 photos .* do not tell the scale.*in one place or contradict"):
        placing.georeference(scene, hovering, frame, None, 0)
    shuffled = positions_of(rng.permutation(true[:, :3, 3]))
    with pytest.raises(JobFailed, match="do not tell the scale"):
        placing.scale_by_positions(scene, shuffled, 0)
    assert placing.scale_by_positions(scene, shuffled, 0, auto=True) is None
    two = replace(shuffled, coordinates={index: shuffled.coordinates[index] for index in (3, 4)})
    with pytest.raises(JobFailed, match="2 of the 60 photos that were placed have a position"):
        placing.georeference(scene, two, frame, None, 0)


def test_a_known_scale_stays() -> None:
    true = flight()
    estimate = ScaleEstimate("marker", 1.02 / 0.03, 0.001)
    placed = placing.georeference(scene_of(true), positions_of(true[:, :3, 3], 0.1), EnuFrame(ORIGIN), estimate, 0)
    length = np.linalg.norm(placed.views[0].world_from_cam[:3, 3] - placed.views[30].world_from_cam[:3, 3])
    assert length == pytest.approx(1.02 * np.linalg.norm(true[0, :3, 3] - true[30, :3, 3]), rel=1e-9)
    assert placed.scale_from is estimate
    assert "the positions alone would make the scene -2.0% larger than --scale-from marker" in " ".join(placed.notes)


def test_everything_in_a_scene_moves_with_it() -> None:
    """Depths scale, normals turn, types stay; and the inverse brings all back."""
    rng = np.random.default_rng(0)
    scene = scene_of(flight(2, 3))
    dense = PointMap(
        rng.normal(size=(4, 5, 3)).astype(np.float32),
        np.ones((4, 5)),
        np.ones((4, 5), bool),
        np.zeros((4, 5, 3), np.uint8),
        np.eye(3),
    )
    calibration = Calibration(900.0, 0.01, (0.1,), (9.0, 9.0), rng.normal(size=(2, 10)))
    lost = replace(scene.views[5], world_from_cam=np.full((4, 4), np.nan), registered=False)
    views = (replace(scene.views[0], dense=dense, calibration=calibration), *scene.views[1:5], lost)
    normals = np.array([[0, 0, 1.0], [1, 0, 0]], np.float32)
    fused = FusedCloud(rng.normal(size=(2, 3)), np.zeros((2, 3), np.uint8), normals, np.ones(2))
    surface = Mesh(rng.normal(size=(3, 3)), np.array([[0, 1, 2]]))
    full = replace(scene, views=views, fused=fused, surface=surface)
    similarity = scene_from_world(8)
    moved = full.transformed(similarity)
    np.testing.assert_allclose(moved.views[0].depth, 0.03 * full.views[0].depth, rtol=1e-4)
    assert moved.views[0].dense is not None and moved.views[0].dense.points_world.dtype == np.float32
    assert moved.fused is not None and moved.fused.normals.dtype == np.float32
    np.testing.assert_allclose(moved.fused.normals, normals @ similarity[:3, :3].T / 0.03, atol=1e-6)
    assert not moved.views[5].registered and np.isnan(moved.views[5].world_from_cam).any()
    back = moved.transformed(np.linalg.inv(similarity))
    for one, two in zip(full.views[:5], back.views):
        np.testing.assert_allclose(one.world_from_cam, two.world_from_cam, atol=1e-9)
    assert back.views[0].calibration is not None and back.surface is not None
    np.testing.assert_allclose(back.views[0].calibration.modes, calibration.modes, atol=1e-9)
    np.testing.assert_allclose(back.surface.vertices, surface.vertices, atol=1e-9)
    scaled = full.transformed(np.diag([2.0, 2, 2, 1]))
    np.testing.assert_allclose(
        scaled.views[1].world_from_cam, full.scaled(2.0, "metric", None).views[1].world_from_cam, atol=1e-12
    )
