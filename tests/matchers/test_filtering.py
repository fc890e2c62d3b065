"""Overlays burnt into two photos are no evidence; far points and one view twice are none of them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dune_cli.geometry import cameras, poses
from dune_cli.geometry.cameras import quarter_turn
from dune_cli.matchers.filtering import LazyThumbnail, Thumbnail, non_static_matches

SIZE = (640, 480)
K = cameras.K_from_focal(500.0, *SIZE)


def noise(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = sum(cv2.resize(rng.normal(0, 40, (n, n, 3)), size, interpolation=cv2.INTER_CUBIC) for n in (12, 30, 80))
    return np.clip(128 + image, 0, 255).astype(np.uint8)


def with_caption(rgb: np.ndarray, height: int = 60) -> np.ndarray:
    out = rgb.copy()
    out[-height:] = noise(99, (rgb.shape[1], height))
    return out


def scene_matches(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A step to the side and a small turn before points 2 to 20 away."""
    rng = np.random.default_rng(seed)
    pixels = rng.uniform((0, 0), (SIZE[0], SIZE[1] - 70), (count, 2))
    points = cameras.backproject(pixels, rng.uniform(2, 20, count), K)
    pose = poses.from_rotation_translation(poses.rotation_from_rotvec(np.array([0.01, 0.06, 0.02])), [0.4, 0.02, 0.05])
    return pixels, cameras.project(poses.transform_points(pose, points), K) + rng.normal(0, 0.3, (count, 2))


def caption_matches(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform((20, 425), (620, 475), (count, 2))


def moving(one, two, points1, points2) -> np.ndarray:
    return non_static_matches(points1, points2, (1.0, 1.0), LazyThumbnail.of(one), LazyThumbnail.of(two))


def test_a_caption_on_photos_of_two_places_is_no_evidence() -> None:
    caption = caption_matches(80)
    strays = np.random.default_rng(2).uniform(0, (640, 420), (2, 40, 2))
    letters = caption_matches(40, 3), caption_matches(40, 4) * (1, 0)  # one letter taken for another of its row
    letters[1][:, 1] = letters[0][:, 1]
    points1, points2 = (np.concatenate([caption, s, e]) for s, e in zip(strays, letters))
    keep = moving(with_caption(noise(0)), with_caption(noise(1)), points1, points2)
    assert not keep[:80].any() and keep[80:120].all() and not keep[120:].any()


def test_a_caption_on_photos_of_one_place_is_taken_out() -> None:
    scene, caption = scene_matches(200), caption_matches(300)
    points1, points2 = np.concatenate([scene[0], caption]), np.concatenate([scene[1], caption])
    keep = moving(with_caption(noise(0)), with_caption(noise(1)), points1, points2)
    assert keep[:200].mean() > 0.98 and keep[200:].mean() < 0.2


def test_far_points_that_agree_with_the_motion_stay() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.uniform((0, 0), SIZE, (400, 2))
    depth = np.where(np.arange(400) < 200, 1e4, rng.uniform(2, 8, 400))
    points = cameras.backproject(pixels, depth, K)
    pose = poses.from_rotation_translation(np.eye(3), [0.3, 0.02, -0.2])
    keep = moving(noise(0), noise(1), pixels, cameras.project(poses.transform_points(pose, points), K))
    assert keep.mean() > 0.98


def test_one_view_twice_is_no_overlay_and_few_coincidences_are_no_matter() -> None:
    pixels = np.random.default_rng(0).uniform((0, 0), SIZE, (300, 2))
    again = np.clip(noise(0) * 0.8 + np.random.default_rng(0).normal(0, 4, (480, 640, 3)), 0, 255).astype(np.uint8)
    assert moving(noise(0), again, pixels, pixels + 0.2).all()

    def never() -> Thumbnail:
        raise AssertionError("the photos are not needed")

    photos = LazyThumbnail(SIZE, never), LazyThumbnail(SIZE, never)
    assert non_static_matches(pixels, pixels + np.array([30.0, 0.0]), (1.0, 1.0), *photos).all()
    assert non_static_matches(pixels[:0], pixels[:0], (1.0, 1.0), *photos).shape == (0,)


@pytest.mark.parametrize("turns", range(4))
def test_an_overlay_in_a_turned_photo_and_one_in_a_corner_of_another_size(turns: int) -> None:
    caption = caption_matches(80)
    one, two = with_caption(noise(0)), with_caption(noise(1))
    turned = np.ascontiguousarray(np.rot90(two, -turns))
    points2 = cameras.transform_pixels(quarter_turn(*SIZE, turns), caption)
    assert not moving(one, turned, caption, points2).any()
    taller = np.concatenate([noise(5, (640, 120)), two])
    assert not moving(one, taller, caption, caption + np.array([0, 120])).any()


def test_quarter_turns_keep_pixel_centres() -> None:
    rgb = noise(0)
    spots = np.array([[0, 0], [639, 0], [17, 300]])
    for turns in range(4):
        turned = np.rot90(rgb, -turns)
        x, y = np.rint(cameras.transform_pixels(quarter_turn(*SIZE, turns), spots)).astype(int).T
        np.testing.assert_array_equal(turned[y, x], rgb[spots[:, 1], spots[:, 0]])
