"""SIFT on known homographies and on the example stereo pair."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dune_cli.geometry import epipolar
from dune_cli.io.photos import read_photo
from dune_cli.matchers.registry import load_matcher
from dune_cli.matchers.sift import Sift
from support import warped


@pytest.mark.parametrize("homography", [warped.SHIFT, warped.ENLARGED, warped.TILTED])
def test_known_homographies(homography: np.ndarray) -> None:
    warped.check(warped.errors_px(load_matcher("sift"), homography), at_least=1500, median_px=0.2, bias_px=0.03)


def test_example_stereo_pair(example_photos: Path) -> None:
    """Rectified: no rotation, translation along x, and rows that agree."""
    left, right = (read_photo(example_photos / f"motorcycle_{side}.png").rgb for side in ("left", "right"))
    K = {
        name: np.array(value)
        for name, value in json.loads((example_photos / "motorcycle_intrinsics.json").read_text()).items()
    }
    found = load_matcher("sift").match(left, right)
    pose = epipolar.estimate_relative_pose(
        found.points1,
        found.points2,
        K["motorcycle_left.png"],
        K["motorcycle_right.png"],
        (found.pixel_size1, found.pixel_size2),
    )
    assert pose is not None
    assert pose.inliers.sum() > 1500
    truth = np.eye(4)
    truth[0, 3] = -1
    rotation, translation = np.degrees(epipolar.pose_error(pose.cam2_from_cam1, truth))
    assert rotation < 0.1
    assert translation < 0.5
    rows = found.points1[pose.inliers, 1] - found.points2[pose.inliers, 1]
    assert abs(np.median(rows)) < 0.1


def test_a_photo_without_texture_gives_no_matches() -> None:
    found = load_matcher("sift").match(np.full((60, 80, 3), 128, np.uint8), warped.astronaut())
    assert found.points1.shape == found.points2.shape == (0, 2)
    assert found.keypoints1 == 0
    assert found.keypoints2 > 1000


def test_features_once_are_as_good_as_matching_from_photos() -> None:
    rgb = warped.astronaut()
    sift = Sift(working_size_px=512)
    direct = sift.match(rgb, rgb[:, ::-1])
    shared = sift.match_features(sift.extract(rgb), sift.extract(rgb[:, ::-1]))
    np.testing.assert_array_equal(direct.points2, shared.points2)


def test_a_photo_matches_itself_pixel_for_pixel() -> None:
    rgb = warped.astronaut()
    found = Sift(working_size_px=512).match(rgb, rgb)
    assert len(found.points1) > 500
    np.testing.assert_array_equal(found.points1, found.points2)
