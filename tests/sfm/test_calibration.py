"""The lens that calibration chooses is the simplest one that explains the points, and its terms are the true ones."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.geometry import poses
from dune_cli.geometry.bundle_adjustment import PRINCIPAL_SD, Bundle
from dune_cli.geometry.camera_models import Camera
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.sfm import calibration
from dune_cli.sfm.calibration import calibrate
from dune_cli.sfm.cameras import share_cameras
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.scene import SfmModel

SIZE, CENTRE, VIEWS = (488, 354), (243.5, 176.5), 5


def calibrated(
    true: Camera, start: PhotoCamera, noise_px: float = 0.3, wide: float = 1.0, beside: Camera | None = None
) -> SfmModel | None:
    """The model of photos that `true` took, mapped with `start`, from keypoints with this noise, of points in a box so
    many times as wide. `beside`: a known camera that took as many photos."""
    rng = np.random.default_rng(0)
    points = rng.uniform((-4 * wide, -3 * wide, 3), (4 * wide, 3 * wide, 7), (400, 3))
    world_from_cam, keypoints, observations = {}, [], {}
    cameras = [true] * VIEWS + [beside] * VIEWS * (beside is not None)
    for index, (own, x) in enumerate(zip(cameras, np.tile(np.linspace(-1, 1, VIEWS), 2))):
        assert own is not None
        rotvec = (0.02 * rng.normal(), 0.02 * rng.normal() - 0.15 * x, 0.02 * rng.normal())
        pose = poses.from_rotation_translation(
            poses.rotation_from_rotvec(np.array(rotvec)), np.array([x, 0.2 * rng.normal(), 0.2 * rng.normal()])
        )
        pixels = own.project(poses.transform_points(poses.inverse(pose), points))
        seen = np.flatnonzero(((pixels > 0) & (pixels < SIZE)).all(-1))
        world_from_cam[index] = pose
        keypoints.append(pixels[seen] + noise_px * rng.standard_normal((len(seen), 2)))
        observations[index] = (seen, np.arange(len(seen)))
    noisy = points + 0.01 * rng.standard_normal(points.shape)
    shared = share_cameras([PhotoCamera(own, "given", True) if own is beside else start for own in cameras])
    known = {n: camera.camera for n, camera in enumerate(shared.shared)}
    model = SfmModel(known, world_from_cam, noisy, np.zeros(len(points)), observations)
    colors = tuple(np.zeros((len(pixels), 3), np.uint8) for pixels in keypoints)
    correspondences = Correspondences(tuple(keypoints), colors, (1.0,) * len(cameras), {})
    return calibrate(model, correspondences, shared, (), {}, 1.0)


def start_of(focals: tuple[float, float], source: str) -> PhotoCamera:
    return PhotoCamera(Camera("PINHOLE", (*focals, *CENTRE), *SIZE), source)


@pytest.mark.parametrize(
    ("model", "terms"),
    [("SIMPLE_RADIAL", (-0.08,)), ("RADIAL", (-0.28, 0.07)), ("OPENCV", (-0.2, 0.05, 0.004, -0.003))],
)
def test_the_lens_is_chosen_by_what_the_points_tell(model: str, terms: tuple[float, ...]) -> None:
    pinhole = (300.0, *CENTRE) if model != "OPENCV" else (300.0, 300.0, *CENTRE)
    true = Camera(model, (*pinhole, *terms), *SIZE)
    for start in (start_of((300.0, 300.0), "given"), start_of((330.0, 330.0), "default")):
        found = calibrated(true, start)
        assert found is not None and found.cameras[0].model == model
        np.testing.assert_allclose(found.cameras[0].distortion[:1], terms[:1], atol=0.02)
        assert found.cameras[0].params[0] == pytest.approx(300, rel=1e-9 if start.source == "given" else 0.01)
        assert len(found.camera_sd[0][1]) == len(terms)


@pytest.mark.parametrize(
    ("centre", "within_px"),
    [((248.5, 172.5), 1.5), ((160.0, 230.0), 8.0), (CENTRE, 0.0)],
    ids=["near", "cropped", "middle"],
)
def test_the_principal_point_is_estimated_where_it_is_off_the_middle(
    centre: tuple[float, float], within_px: float
) -> None:
    true = Camera("SIMPLE_RADIAL", (300.0, *centre, -0.08), *SIZE)
    found = calibrated(true, start_of((330.0, 330.0), "default"), 0.1 if within_px == 1.5 else 0.3)
    assert found is not None
    np.testing.assert_allclose(found.cameras[0].K[:2, 2], centre, atol=within_px)
    sd_px = found.camera_sd[0].principal_px
    assert sd_px == (PRINCIPAL_SD * SIZE[0],) * 2 if within_px == 0 else max(sd_px) < within_px
    given = calibrated(true, start_of((300.0, 300.0), "given"))  # four numbers say where it is
    assert given is not None
    np.testing.assert_array_equal(given.cameras[0].K[:2, 2], CENTRE)


def test_a_principal_point_that_the_photos_hardly_tell_stays_in_the_middle() -> None:
    found = calibrated(
        Camera("SIMPLE_RADIAL", (300.0, 248.5, 172.5, -0.08), *SIZE), start_of((330.0, 330.0), "default")
    )
    assert found is not None
    np.testing.assert_array_equal(found.cameras[0].K[:2, 2], CENTRE)


def test_a_fisheye_is_one() -> None:
    true = Camera("OPENCV_FISHEYE", (220.0, 220.0, *CENTRE, 0.02, -0.004, 0.001, -0.0002), *SIZE)
    found = calibrated(true, start_of((220.0, 220.0), "given"))
    assert found is not None and "FISHEYE" in found.cameras[0].model
    grid = np.stack(np.meshgrid(np.linspace(60, 430, 9), np.linspace(50, 300, 7)), -1)
    np.testing.assert_allclose(found.cameras[0].project(true.unproject(grid)), grid, atol=0.7)


def test_a_fisheye_of_160_degrees_is_one_where_nothing_is_given() -> None:
    true = Camera("OPENCV_FISHEYE", (165.0, 165.0, *CENTRE, -0.02, 0.006, -0.002, 0.0), *SIZE)
    found = calibrated(true, start_of((230.0, 230.0), "default"), wide=3.0)
    assert found is not None and "FISHEYE" in found.cameras[0].model
    grid = np.stack(np.meshgrid(np.linspace(60, 430, 9), np.linspace(50, 300, 7)), -1)
    turns = np.arccos(np.clip((found.cameras[0].unproject(grid) * true.unproject(grid)).sum(-1), -1, 1))
    assert np.degrees(turns).max() < 0.3


def test_a_known_focal_length_without_distortion_is_left_alone() -> None:
    start = start_of((300.0, 301.0), "given")
    found = calibrated(Camera("PINHOLE", (300.0, 301.0, *CENTRE), *SIZE), start)
    assert found is not None and found.cameras == {0: start.camera} and not found.camera_sd
    found = calibrated(start.camera, start_of((330.0, 330.0), "default"))
    assert found is not None and found.cameras[0].model == "SIMPLE_RADIAL"


@pytest.mark.parametrize(
    "known",
    [
        Camera("OPENCV_FISHEYE", (165.0, 166.0, 240.0, 180.0, -0.02, 0.006, -0.002, 0.0), *SIZE),
        Camera("FULL_OPENCV", (330.0, 331.0, 240.0, 180.0, 0.1, -0.05, 0.001, -0.001, 0.004, 0.2, -0.03, 0.002), *SIZE),
        Camera("THIN_PRISM_FISHEYE", (165, 166, 240, 180, -0.03, 0.01, 0.002, -0.001, -0.002, 0, 0.001, -0.002), *SIZE),
        Camera("FOV", (250.0, 250.0, 240.0, 180.0, 0.9), *SIZE),
    ],
    ids=lambda camera: camera.model,
)
def test_poses_and_points_are_adjusted_with_a_lens_that_is_known(known: Camera) -> None:
    found = calibrated(known, PhotoCamera(known, "given", True), wide=3.0 if known.kind.fisheye else 1.0)
    assert found is not None and found.cameras == {0: known}
    assert np.sqrt((found.errors_px**2).mean()) < 0.45  # noise of 0.3 px a coordinate
    assert len(found.points_world) > 150 and not found.camera_sd


def test_a_principal_point_is_estimated_beside_a_camera_that_is_known() -> None:
    known = Camera("PINHOLE", (280.0, 280.0, *CENTRE), *SIZE)
    true = Camera("SIMPLE_RADIAL", (300.0, 248.5, 172.5, -0.08), *SIZE)
    found = calibrated(true, start_of((330.0, 330.0), "default"), 0.1, beside=known)
    assert found is not None and found.cameras[1] == known
    np.testing.assert_allclose(found.cameras[0].K[:2, 2], (248.5, 172.5), atol=0.5)


def test_some_of_many_points_calibrate_and_all_are_adjusted(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Camera("SIMPLE_RADIAL", (300.0, *CENTRE, -0.08), *SIZE)
    whole = calibrated(true, start_of((330.0, 330.0), "default"))
    monkeypatch.setattr(calibration, "MAX_OBSERVATIONS", 500)
    part = calibrated(true, start_of((330.0, 330.0), "default"))
    assert whole is not None and part is not None and len(part.points_world) == len(whole.points_world)
    np.testing.assert_allclose(part.cameras[0].params, whole.cameras[0].params, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(part.errors_px, whole.errors_px, atol=0.02)
    assert part.camera_sd[0][0] == pytest.approx(whole.camera_sd[0][0], rel=0.05)  # that of all points


def test_few_points_leave_no_view_without_its_own() -> None:
    point = np.concatenate([np.repeat(np.arange(50), 4), np.repeat(np.arange(50, 80), 2)])
    view = np.concatenate([np.tile(np.arange(4), 50), np.tile([4, 5], 30)])
    bundle = Bundle(*[np.zeros(1)] * 6, np.zeros((80, 3)), view, point, np.zeros((len(view), 2)))
    selected = calibration.longest_tracks(bundle, 200)
    assert selected[:50].all() and np.count_nonzero(selected[50:]) == calibration.LEAST_OBSERVATIONS
