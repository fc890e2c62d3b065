"""Photos of one size whose focal lengths agree share a camera; those of many people do not."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.geometry.camera_models import Camera
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.sfm.cameras import PhotoCameras, share_cameras
from dune_cli.sfm.device_cameras import cameras_by_size
from dune_cli.sfm.scene import SfmModel

SMALL, LARGE = (480, 360), (640, 480)


def photo(size: tuple[int, int], source: str = "default", focal_px: float = 460.0) -> PhotoCamera:
    width, height = size
    K = np.array([[focal_px, 0, (width - 1) / 2], [0, focal_px, (height - 1) / 2], [0, 0, 1]])
    return PhotoCamera.of_matrix(K, source, width, height)


def mapped(cameras: PhotoCameras, focals_px: dict[int, float]) -> SfmModel:
    """A model with the focal lengths of these photos' cameras; the other photos are not placed."""
    found = {}
    for index, focal_px in focals_px.items():
        own = cameras.of(index)
        params = (focal_px, (own.width - 1) / 2, (own.height - 1) / 2, -0.1)
        found[cameras.ids[index]] = Camera("SIMPLE_RADIAL", params, own.width, own.height)
    return SfmModel(found, dict.fromkeys(focals_px, np.eye(4)), np.zeros((0, 3)), np.zeros(0), {})


def test_two_devices_in_one_folder_have_two_cameras() -> None:
    cameras = share_cameras([photo(size) for size in [SMALL, LARGE] * 4])
    assert len(cameras.shared) == 8
    focals_px = {0: 420.0, 2: 431.0, 4: 412.0, 1: 650.0, 3: 661.0, 5: 640.0, 7: 655.0}
    shared = cameras_by_size(cameras, mapped(cameras, focals_px))
    assert shared is not None and len(shared.shared) == 2
    assert shared.ids == (0, 1) * 4  # photo 6, which is not placed, has the camera of its size


@pytest.mark.parametrize(
    ("sizes", "focals_px"),
    [
        ([SMALL, LARGE] * 4, [420.0, 800.0, 600.0, 500.0, 810.0, 650.0, 350.0, 1000.0]),  # of many people
        ([SMALL, LARGE] * 2, [420.0, 650.0, 421.0, 651.0]),  # two photos tell nothing
    ],
    ids=["apart", "few"],
)
def test_photos_that_do_not_agree_keep_their_cameras(sizes: list[tuple[int, int]], focals_px: list[float]) -> None:
    cameras = share_cameras([photo(size) for size in sizes])
    assert cameras_by_size(cameras, mapped(cameras, dict(enumerate(focals_px)))) is None


def test_one_zoomed_photo_and_cameras_that_are_known_stay_apart() -> None:
    photos = [photo(SMALL) for _ in range(6)] + [photo(LARGE) for _ in range(5)] + [photo(LARGE, "exif", 700.0)] * 3
    cameras = share_cameras(photos)
    focals_px = dict.fromkeys(range(6), 420.0) | {5: 600.0} | {n: 640.0 + n for n in range(6, 11)} | {11: 700.0}
    shared = cameras_by_size(cameras, mapped(cameras, focals_px))
    assert shared is not None
    assert shared.ids == (0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 3, 3, 3)
    assert [camera.prior for camera in shared.shared] == [False, False, False, True]
