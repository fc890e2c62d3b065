"""Undistorted photos and maps of them back in the photo: they lie on the same rays, for every lens."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.errors import UserError
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import pixel_grid, transform_pixels
from dune_cli.io.undistortion import WIDEST_DEG, StraightPhoto, undistort_image

LENSES = {
    "barrel": Camera("OPENCV", (110.0, 112.0, 60.0, 44.0, -0.28, 0.07, 0.001, -0.001), 128, 96),
    "pincushion": Camera("SIMPLE_RADIAL", (110.0, 63.0, 47.0, 0.15), 128, 96),
    "fisheye": Camera("OPENCV_FISHEYE", (45.0, 45.0, 64.0, 47.0, -0.02, 0.005, -0.001, 0.0002), 128, 96),
}
lenses = pytest.mark.parametrize("camera", LENSES.values(), ids=list(LENSES))


def on_plane(camera: Camera) -> np.ndarray:
    """(H, W, 2) x/z and y/z of each pixel's ray, NaN beyond WIDEST_DEG."""
    rays = camera.unproject(pixel_grid(camera.height, camera.width))
    seen = rays[..., 2:] >= np.cos(np.radians(WIDEST_DEG))
    return np.where(seen, rays[..., :2] / rays[..., 2:], np.nan)


@lenses
def test_all_that_the_photo_shows_is_in_the_straight_one_and_nothing_larger_would_be(camera: Camera) -> None:
    straight = StraightPhoto.of(camera)
    pixels = transform_pixels(straight.K, on_plane(camera))
    low, high = np.nanmin(pixels, axis=(0, 1)), np.nanmax(pixels, axis=(0, 1))
    size = np.array([camera.width - 1, camera.height - 1])
    assert (low > -1.5).all() and (high < size + 1.5).all()  # sampled at 64 x 64 of its pixels
    assert np.any((low < 1) & (high > size - 2))  # it fills one side
    assert straight.K[1, 1] / straight.K[0, 0] == pytest.approx(camera.K[1, 1] / camera.K[0, 0])


@lenses
def test_a_map_of_rays_comes_back_at_the_pixels_of_these_rays(camera: Camera) -> None:
    straight = StraightPhoto.of(camera)
    plane = transform_pixels(np.linalg.inv(straight.K), pixel_grid(camera.height, camera.width))
    expected = on_plane(camera)
    for axis in range(2):
        found = straight.map_in_photo(plane[..., axis])
        assert (np.isfinite(found) == np.isfinite(expected[..., axis])).mean() > 0.995
        np.testing.assert_allclose(
            found, np.where(np.isfinite(found), expected[..., axis], np.nan), atol=1.1 / straight.K[0, 0]
        )
    beyond = np.isnan(expected[..., 0])
    assert np.isnan(straight.map_in_photo(np.ones((camera.height, camera.width)))[beyond]).all()


@lenses
def test_pixels_go_there_and_back(camera: Camera) -> None:
    straight = StraightPhoto.of(camera)
    inside = np.stack(np.meshgrid(np.linspace(20, 100, 9), np.linspace(20, 70, 9)), -1)
    photo = straight.pixels_in_photo(inside)
    rays = camera.unproject(photo)
    np.testing.assert_allclose(transform_pixels(straight.K, rays[..., :2] / rays[..., 2:]), inside, atol=1e-6)


def test_the_undistorted_image_shows_straight_lines_straight() -> None:
    """A photo whose red channel is x/z: undistorted, it is linear in x."""
    camera = LENSES["barrel"]
    plane = on_plane(camera)
    photo = np.uint8(np.clip(128 + 160 * plane, 0, 255)).repeat(2, -1)[..., :3]
    undistorted = undistort_image(photo, camera)
    expected = 128 + 160 * transform_pixels(np.linalg.inv(camera.K), pixel_grid(96, 128))
    assert np.abs(undistorted[10:-10, 10:-10, 0] - expected[10:-10, 10:-10, 0]).max() < 2.5


def test_a_lens_that_looks_elsewhere() -> None:
    with pytest.raises(UserError, match="shows nothing within 60 degrees"):
        StraightPhoto.of(Camera("SIMPLE_FISHEYE", (30.0, 1000.0, 1000.0), 64, 64))
