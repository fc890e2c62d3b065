"""Global mapping of many photos: cameras calibrated by the photos that hang together best, then all photos at once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dune_cli.geometry.cameras import K_from_focal
from dune_cli.io.cache import WorkFolder
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.matchers.filtering import Thumbnail
from dune_cli.matchers.sift import Sift
from dune_cli.sfm import global_mapping
from dune_cli.sfm.cameras import share_cameras
from dune_cli.sfm.features import extract_features
from dune_cli.sfm.mapper import MappingConfig, map_photos
from dune_cli.sfm.matching import match_pairs
from dune_cli.sfm.pairs import sequential_pairs
from dune_cli.sfm.verification import VerifiedPairs, verify_pairs
from support.many_photos import HEIGHT, WIDTH, arc, picture, write

PHOTOS = 8
FOCAL_PX, GUESS_PX = 300.0, 420.0


def test_the_photos_that_hang_together_best() -> None:
    counts = {(0, 1): (90, 50), (1, 2): (90, 80), (2, 3): (90, 70), (0, 3): (90, 10), (4, 5): (99, 99), (3, 6): (90, 1)}
    geometry = {pair: SimpleNamespace() for pair in counts}
    verified = VerifiedPairs(geometry, counts)
    assert global_mapping.best_connected(verified, 8, 3) == {1, 2, 3}
    assert global_mapping.best_connected(verified, 8, 4) == {0, 1, 2, 3}
    assert global_mapping.best_connected(verified, 8, 9) == {0, 1, 2, 3, 6}
    assert global_mapping.best_connected(VerifiedPairs({}, {}), 3, 2) == set()


def test_cameras_of_a_part_place_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(global_mapping, "CORE", 5)
    matcher, cache = Sift(320, 1500), WorkFolder(tmp_path / "work")
    images = extract_features(write(tmp_path / "photos", range(PHOTOS)), matcher, cache)
    found = match_pairs(images, sequential_pairs(PHOTOS, 4), matcher, cache)
    guess = K_from_focal(GUESS_PX, WIDTH, HEIGHT)
    cameras = share_cameras([PhotoCamera.of_matrix(guess, "default", WIDTH, HEIGHT)] * PHOTOS)
    verified = verify_pairs(found, cameras, 0, lambda index: Thumbnail.of(picture(index)))
    given = found, verified, cameras, MappingConfig(mapper="global")
    draft = global_mapping.map_globally(*given, tmp_path)
    model = draft.models[0]
    assert len(model.world_from_cam) == PHOTOS
    focal_px = model.cameras[0].K[0, 0]
    assert abs(focal_px / FOCAL_PX - 1) < 0.05
    # the calibration of all photos goes on from it, and says how sure it is
    (last, *_) = map_photos(*given, tmp_path, draft=draft)
    assert len(last.world_from_cam) == PHOTOS and 0 < last.camera_sd[0][0] < 0.1
    centres = np.stack([last.world_from_cam[index][:3, 3] for index in range(PHOTOS)])
    truth = np.stack([arc(index)[:3, 3] for index in range(PHOTOS)])
    lengths = [np.linalg.norm(np.diff(part, axis=0), axis=1) for part in (centres, truth)]
    assert np.ptp(lengths[0] / lengths[1]) < 0.1 * np.mean(lengths[0] / lengths[1])
    again = global_mapping.map_globally(*given, tmp_path).models[0]
    for index, pose in model.world_from_cam.items():
        np.testing.assert_array_equal(again.world_from_cam[index], pose)
