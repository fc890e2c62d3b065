"""Which photos share a camera."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dune_cli.errors import UserError
from dune_cli.geometry import cameras
from dune_cli.geometry.rigs import Mount, Rigs
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.io.photos import PhotoInfo
from dune_cli.sfm.cameras import share_cameras

WIDE, TALL = (640, 480), (480, 640)


def photos(*sizes: tuple[int, int]) -> list[PhotoInfo]:
    return [PhotoInfo(Path(f"{i}.jpg"), w, h, str(i)) for i, (w, h) in enumerate(sizes)]


def owned(photos: Sequence[PhotoInfo], source: str, focal_px: float = 500.0) -> list[PhotoCamera]:
    return [
        PhotoCamera.of_matrix(cameras.K_from_focal(focal_px, p.width, p.height), source, p.width, p.height)
        for p in photos
    ]


def test_cameras_are_shared_by_size_and_focal_length() -> None:
    one = photos(WIDE, WIDE, WIDE, WIDE, TALL)
    shared = share_cameras(owned(one, "default"))
    assert shared.ids == (0, 0, 0, 0, 1) and not shared.of(0).fixed and not shared.of(0).prior
    assert (shared.of(4).width, shared.of(4).height) == TALL
    crowd = photos(WIDE, TALL, WIDE, (600, 400))
    assert share_cameras(owned(crowd, "default")).ids == (0, 1, 2, 3)
    given = share_cameras(owned(crowd, "given"))
    assert given.ids == (0, 1, 0, 2) and given.of(0).fixed
    exif = share_cameras([owned(photos(WIDE), "exif", f)[0] for f in (500.0, 500.0, 700.0)])
    assert exif.ids == (0, 0, 1) and exif.of(0).prior


def test_sensors_of_rigs_have_cameras_of_their_own_and_photos_beside_them_share_theirs() -> None:
    mounts = {index: Mount(0, index % 2, index // 2, np.eye(4)) for index in range(4)}
    beside = photos(WIDE, WIDE, WIDE, WIDE, TALL, TALL)
    assert share_cameras(owned(beside, "default"), Rigs(mounts)).ids == (0, 1, 0, 1, 2, 2)
    with pytest.raises(UserError, match="a sensor of a rig takes photos of one size"):
        share_cameras(owned(photos(WIDE, WIDE, TALL, WIDE), "default"), Rigs(mounts))
