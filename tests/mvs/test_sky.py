"""The sky of photos: whether it is plain, and which pixels show it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dune_cli.mvs.sky import MARGIN_PX, SkyNetwork, find_sky, sky_pixels

HEIGHT, WIDTH = 240, 320


def _outdoors(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A photo of a gradient above a textured tower and ground, and where its sky is."""
    rng = np.random.default_rng(seed)
    sky = np.zeros((HEIGHT, WIDTH), bool)
    sky[:150] = True
    sky[40:, 120:200] = False
    blue = np.stack([np.full(HEIGHT, 110.0), np.linspace(150, 190, HEIGHT), np.full(HEIGHT, 235.0)], -1)[:, None]
    stone = np.array([130, 100, 80]) + rng.normal(0, 20, (HEIGHT, WIDTH, 1))
    return np.where(sky[..., None], blue, stone).clip(0, 255).astype(np.uint8), sky


def _coarse(sky: np.ndarray) -> np.ndarray:
    """As a network of 1/8 of the size sees it, a place too far to the right."""
    return cv2.resize(np.roll(sky, 6, 1).astype(np.float32), (WIDTH // 8, HEIGHT // 8), interpolation=cv2.INTER_AREA)


def test_coarse_edges_go_to_those_of_the_photo() -> None:
    rgb, sky = _outdoors()
    found = sky_pixels(rgb, _coarse(sky))
    wide = cv2.dilate(sky.astype(np.uint8), np.ones((2 * MARGIN_PX + 5,) * 2, np.uint8)) > 0
    enlarged = cv2.resize(_coarse(sky), (WIDTH, HEIGHT)) > 0.5
    wrong, without = (float((one & ~wide).mean() + (sky & ~one).mean()) for one in (found, enlarged))
    assert wrong < 0.007 and wrong < 0.6 * without


def test_a_region_without_a_sure_place_is_no_sky() -> None:
    rgb, sky = _outdoors()
    assert not sky_pixels(rgb, 0.8 * _coarse(sky)).any()


@pytest.mark.parametrize(("plain", "photos"), [(3, 5), (2, 5), (9, 9), (0, 9), (1, 1), (0, 0)])
def test_sky_is_looked_for_where_most_photos_of_a_sample_show_it(plain: int, photos: int) -> None:
    rgb, sky = _outdoors()
    calls = []

    def probability(photo: np.ndarray) -> np.ndarray:
        calls.append(photo)
        return _coarse(sky) * float(photo[0, 0, 0] > 0)

    dark = rgb * np.uint8(0)
    found = find_sky([rgb] * plain + [dark] * (photos - plain) + [None], SkyNetwork(probability, ()))
    is_plain = 2 * plain > photos
    assert len(calls) == (photos if is_plain else min(photos, 5))
    assert [one is None for one in found] == [not is_plain] * photos + [True]
    assert not is_plain or (found[0] is not None and found[0].any())
