"""Photos that are turned by quarters: matched in a turned copy, at the pixels of the photo as it is."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.geometry import cameras, epipolar, poses
from dune_cli.geometry.cameras import quarter_turn, transform_pixels
from dune_cli.matchers.filtering import extract_image, find_matches
from dune_cli.matchers.matcher import Matcher
from dune_cli.matchers.xfeat_lighterglue import XFeatLighterGlue
from support import synthetic_scenes
from support.upright_sift import UprightSift

WIDTH, HEIGHT = 320, 240
K = cameras.K_from_fov(60, WIDTH, HEIGHT)
MOVED = synthetic_scenes.pose((0.02, -0.07, 0.01), (0.4, 0.02, 0.1))


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [synthetic_scenes.render(K, pose, WIDTH, HEIGHT)[0] for pose in (np.eye(4), MOVED)]


@pytest.fixture(scope="module", params=["upright-sift", "xfeat-lighterglue"])
def matcher(request: pytest.FixtureRequest) -> Matcher:
    return UprightSift() if request.param == "upright-sift" else XFeatLighterGlue("cpu")


@pytest.mark.parametrize("turns", range(4))
def test_a_turned_photo_is_matched_at_its_own_pixels(matcher: Matcher, pictures: list[np.ndarray], turns: int) -> None:
    one = extract_image(matcher, pictures[0])
    turned = np.ascontiguousarray(np.rot90(pictures[1], -turns))
    found = find_matches(matcher, one, extract_image(matcher, turned))
    assert (found.rotated_deg, found.tries) == ((-90 * turns) % 360, 1 if turns == 0 else 4)
    assert len(found.points1) > 100
    upright = transform_pixels(np.linalg.inv(quarter_turn(WIDTH, HEIGHT, turns)), found.points2)
    off = epipolar.sampson_error_px(found.points1, upright, K, K, poses.inverse(MOVED))
    assert np.median(off) < 0.5 and (off < 1.5).mean() > 0.8


def test_upright_photos_are_looked_at_once_and_other_places_stay_refused(pictures: list[np.ndarray]) -> None:
    matcher = UprightSift()
    one, two = (extract_image(matcher, rgb) for rgb in pictures)
    assert find_matches(matcher, one, two).tries == 1 and matcher.extracted == 2
    elsewhere = extract_image(matcher, synthetic_scenes.render(K, np.eye(4), WIDTH, HEIGHT, 7)[0])
    assert find_matches(matcher, one, elsewhere).rotated_deg == 0 and matcher.extracted == 6


def test_features_of_a_turned_copy_can_be_kept(pictures: list[np.ndarray]) -> None:
    matcher = UprightSift()
    features = matcher.extract_rotated(pictures[0], 3)
    again = matcher.unpack(matcher.pack(features))
    np.testing.assert_allclose(
        again.photo.to_original(again.points), features.photo.to_original(features.points), atol=1e-3
    )
    assert features.photo.to_original(features.points)[:, 0].max() > HEIGHT  # of the photo as it is
