"""The lens that calibration chooses is the simplest one that explains the points, and its terms are the true ones."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.geometry import poses
from dune_cli.geometry.camera_models import Camera
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.sfm.calibration import calibrate
from dune_cli.sfm.cameras import share_cameras
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.scene import SfmModel

SIZE, CENTRE, VIEWS = (488, 354), (243.5, 176.5), 5


def calibrated(true: Camera, start: PhotoCamera) -> SfmModel | None:
    """The model of photos that `true` took, mapped with `start`."""
    rng = np.random.default_rng(0)
    points = rng.uniform((-4, -3, 3), (4, 3, 7), (400, 3))
    world_from_cam, keypoints, observations = {}, [], {}
    for index, x in enumerate(np.linspace(-1, 1, VIEWS)):
        rotvec = (0.02 * rng.normal(), 0.02 * rng.normal() - 0.15 * x, 0.02 * rng.normal())
        pose = poses.from_rotation_translation(
            poses.rotation_from_rotvec(np.array(rotvec)), np.array([x, 0.2 * rng.normal(), 0.2 * rng.normal()])
        )
        pixels = true.project(poses.transform_points(poses.inverse(pose), points))
        seen = np.flatnonzero(((pixels > 0) & (pixels < SIZE)).all(-1))
        world_from_cam[index] = pose
        keypoints.append(pixels[seen] + 0.3 * rng.standard_normal((len(seen), 2)))
        observations[index] = (seen, np.arange(len(seen)))
    noisy = points + 0.01 * rng.standard_normal(points.shape)
    model = SfmModel({0: start.camera}, world_from_cam, noisy, np.zeros(len(points)), observations)
    colors = tuple(np.zeros((len(pixels), 3), np.uint8) for pixels in keypoints)
    correspondences = Correspondences(tuple(keypoints), colors, (1.0,) * VIEWS, {})
    return calibrate(model, correspondences, share_cameras([start] * VIEWS), (), {}, 1.0)


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


def test_a_fisheye_is_one() -> None:
    true = Camera("OPENCV_FISHEYE", (220.0, 220.0, *CENTRE, 0.02, -0.004, 0.001, -0.0002), *SIZE)
    found = calibrated(true, start_of((220.0, 220.0), "given"))
    assert found is not None and "FISHEYE" in found.cameras[0].model
    grid = np.stack(np.meshgrid(np.linspace(60, 430, 9), np.linspace(50, 300, 7)), -1)
    np.testing.assert_allclose(found.cameras[0].project(true.unproject(grid)), grid, atol=0.7)


def test_a_known_focal_length_without_distortion_is_left_alone() -> None:
    true = Camera("PINHOLE", (300.0, 301.0, *CENTRE), *SIZE)
    assert calibrated(true, start_of((300.0, 301.0), "given")) is None
    found = calibrated(true, start_of((330.0, 330.0), "default"))
    assert found is not None and found.cameras[0].model == "SIMPLE_RADIAL"
