"""The radial term: its inverse is one, no distortion is none, and COLMAP means the same."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest

from dune_cli.geometry.cameras import distort_pixels, undistort_pixels

K = np.array([[500.0, 0, 319.5], [0, 500.0, 239.5], [0, 0, 1]])


@pytest.mark.parametrize("radial", [-0.12, -0.01, 0.0, 0.03, 0.4])
def test_undistort_inverts_distort(radial: float) -> None:
    pixels = np.random.default_rng(0).uniform((0, 0), (639, 479), (200, 2))
    bent = distort_pixels(pixels, K, radial)
    assert (radial == 0) == np.array_equal(bent, pixels)
    np.testing.assert_allclose(undistort_pixels(bent, K, radial), pixels, atol=1e-9)
    np.testing.assert_allclose(undistort_pixels(K[:2, 2], K, radial), K[:2, 2])


def test_colmap_means_the_same_term() -> None:
    camera = pycolmap.Camera(model="SIMPLE_RADIAL", width=640, height=480, params=[500, 320, 240, -0.08])
    points = np.random.default_rng(1).uniform((-0.5, -0.4, 1), (0.5, 0.4, 1), (50, 3))
    ideal = points[:, :2] * 500 + K[:2, 2]
    np.testing.assert_allclose(distort_pixels(ideal, K, -0.08), camera.img_from_cam(points) - 0.5, atol=1e-9)


def test_beyond_the_fold_there_is_no_answer_and_no_nonsense() -> None:
    far = undistort_pixels(np.array([[4000.0, 239.5]]), K, -0.1)
    assert np.isfinite(far).all() and far[0, 0] > 319.5
