"""Which photos share a camera."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dune_cli.geometry import cameras
from dune_cli.io.photos import PhotoInfo
from dune_cli.sfm.cameras import share_cameras

WIDE, TALL = (640, 480), (480, 640)


def photos(*sizes: tuple[int, int]) -> list[PhotoInfo]:
    return [PhotoInfo(Path(f"{i}.jpg"), w, h, str(i)) for i, (w, h) in enumerate(sizes)]


def intrinsics(photos: Sequence[PhotoInfo], source: str) -> list[tuple[np.ndarray, str]]:
    return [(cameras.K_from_focal(500.0, photo.width, photo.height), source) for photo in photos]


def test_cameras_are_shared_by_size_and_focal_length() -> None:
    one = photos(WIDE, WIDE, WIDE, WIDE, TALL)
    shared = share_cameras(one, intrinsics(one, "default"))
    assert shared.ids == (0, 0, 0, 0, 1) and not shared.of(0).fixed and not shared.of(0).prior
    assert (shared.of(4).width, shared.of(4).height) == TALL
    crowd = photos(WIDE, TALL, WIDE, (600, 400))
    assert share_cameras(crowd, intrinsics(crowd, "default")).ids == (0, 1, 2, 3)
    given = share_cameras(crowd, intrinsics(crowd, "given"))
    assert given.ids == (0, 1, 0, 2) and given.of(0).fixed
    own = [(cameras.K_from_focal(f, 640, 480), "exif") for f in (500.0, 500.0, 700.0)]
    exif = share_cameras(photos(WIDE, WIDE, WIDE), own)
    assert exif.ids == (0, 0, 1) and exif.of(0).prior
