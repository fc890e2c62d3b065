"""Fewer matches for a first model: the same poses, and then all points."""

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
from dune_cli.sfm import mapper, thinned_matches
from dune_cli.sfm.cameras import share_cameras
from dune_cli.sfm.features import extract_features
from dune_cli.sfm.matching import match_pairs
from dune_cli.sfm.pairs import sequential_pairs
from dune_cli.sfm.thinned_matches import thinned
from dune_cli.sfm.verification import VerifiedPairs, verify_pairs
from support.many_photos import HEIGHT, WIDTH, arc, picture, write


def pairs_of(inliers: dict[tuple[int, int], np.ndarray]) -> VerifiedPairs:
    geometry = {pair: SimpleNamespace(inlier_matches=matches) for pair, matches in inliers.items()}
    return VerifiedPairs(geometry, {pair: (len(m), len(m)) for pair, m in inliers.items()})


def test_keypoints_with_most_partners_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MANY_INLIERS", 10), ("KEYPOINTS", 4), ("LEAST_INLIERS", 3)):
        monkeypatch.setattr(thinned_matches, name, value)
    same = np.repeat(np.arange(20)[:, None], 2, axis=1)
    full = pairs_of({(0, 1): same, (0, 2): same[6:9], (1, 2): same[6:10], (2, 3): same[15:]})
    fewer = thinned(full)
    assert fewer is not None
    kept = {pair: found.inlier_matches[:, 0].tolist() for pair, found in fewer.geometry.items()}
    assert kept[0, 1][-3:] == [6, 7, 8] and kept[0, 2] == [6, 7, 8]  # seen by three photos
    assert set(kept[1, 2]) == {6, 7, 8, 9} and kept[2, 3] == [15, 16, 17]  # a weak pair keeps what it needs
    assert len(full.geometry[0, 1].inlier_matches) == 20 and fewer.counts == full.counts


def test_few_matches_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    same = np.repeat(np.arange(3000)[:, None], 2, axis=1)
    assert thinned(pairs_of({(0, 1): same, (1, 2): same})) is None
    monkeypatch.setattr(thinned_matches, "MANY_INLIERS", 10)
    assert thinned(pairs_of({(0, 1): same, (1, 2): same})) is None  # 2,000 of 3,000 are not worth it
    assert thinned(pairs_of({})) is None


@pytest.mark.parametrize("fixed", [True, False])
def test_a_thinned_model_has_all_points(fixed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 6
    matcher, cache = Sift(320, 1500), WorkFolder(tmp_path / "work")
    images = extract_features(write(tmp_path / "photos", range(count)), matcher, cache)
    found = match_pairs(images, sequential_pairs(count, 4), matcher, cache)
    K = K_from_focal(300.0, WIDTH, HEIGHT)
    cameras = share_cameras([PhotoCamera.of_matrix(K, "intrinsics" if fixed else "exif", WIDTH, HEIGHT)] * count)
    verified = verify_pairs(found, cameras, 0, lambda index: Thumbnail.of(picture(index)))
    given = found, verified, cameras, mapper.MappingConfig(), tmp_path
    whole = mapper.map_once(*given).models[0]
    (whole_calibrated, *_) = mapper.map_photos(*given)
    inliers = [len(pair.inlier_matches) for pair in verified.geometry.values()]
    for name, value in (("MANY_INLIERS", 10), ("KEYPOINTS", 100), ("LEAST_INLIERS", 40)):
        monkeypatch.setattr(thinned_matches, name, value)
    assert thinned(verified) is not None
    model = mapper.map_once(*given).models[0]
    assert len(model.world_from_cam) == count and len(model.points_world) > 0.95 * len(whole.points_world)
    (calibrated, *_) = mapper.map_photos(*given)
    truth = np.linalg.norm(np.diff([arc(index)[:3, 3] for index in range(count)], axis=0), axis=1)
    for one in (whole_calibrated, calibrated):
        lengths = np.linalg.norm(np.diff([one.world_from_cam[i][:3, 3] for i in range(count)], axis=0), axis=1)
        assert np.ptp(lengths / truth) < 0.03 * np.mean(lengths / truth)
    assert calibrated.error_px == pytest.approx(whole_calibrated.error_px, rel=0.02)
    assert inliers == [len(pair.inlier_matches) for pair in verified.geometry.values()]
