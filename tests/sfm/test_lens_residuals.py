"""A lens that does not fit its photos shows in the errors, and one that does is not complained of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dune_cli.geometry import poses
from dune_cli.geometry.camera_models import Camera
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.sfm.cameras import share_cameras
from dune_cli.sfm.lens_residuals import lens_notes
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.scene import SfmModel

TRUE = Camera("OPENCV", (300.0, 300.0, 319.5, 239.5, -0.1, 0.02, 0.0, 0.0), 640, 480)


def notes(given: Camera, noise_px: float = 0.5) -> tuple[str, ...]:
    """Of four photos that TRUE took, in a model where `given` is taken for it."""
    rng = np.random.default_rng(0)
    points = rng.uniform((-6, -5, 4), (6, 5, 9), (600, 3))
    world_from_cam, keypoints, observations = {}, [], {}
    for index in range(4):
        world_from_cam[index] = poses.from_rotation_translation(np.eye(3), np.array([0.3 * index, 0, 0]))
        pixels = TRUE.project(points - world_from_cam[index][:3, 3])
        seen = np.flatnonzero(((pixels > 0) & (pixels < (640, 480))).all(-1))
        keypoints.append(pixels[seen] + noise_px * rng.standard_normal((len(seen), 2)))
        observations[index] = (seen, np.arange(len(seen)))
    model = SfmModel({0: given}, world_from_cam, points, np.zeros(len(points)), observations)
    colors = [np.zeros((len(pixels), 3), np.uint8) for pixels in keypoints]
    correspondences = Correspondences(tuple(keypoints), tuple(colors), (1.0,) * 4, {})
    cameras = share_cameras([PhotoCamera(given, "given", lens_known=True)] * 4)
    return lens_notes(model, correspondences, cameras)


def test_the_right_lens_is_not_complained_of() -> None:
    assert notes(TRUE) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        Camera.pinhole(TRUE.K, 640, 480),
        replace(TRUE, params=(*TRUE.params[:4], -0.08, 0.02, 0.0, 0.0)),
        TRUE.with_focal(0.98),
    ],
)
def test_another_lens_is(wrong: Camera) -> None:
    (note,) = notes(wrong)
    assert f"the lens {wrong.model} that was given does not fit 4 photos" in note
    assert ("inwards" in note) == (wrong.params[0] == TRUE.params[0])
