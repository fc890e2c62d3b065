"""Masks on keypoints, matches and maps: what is masked is left out and counted, all else stays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import pixel_grid, resize_transform, transform_pixels
from dune_cli.matchers.matcher import Matches
from dune_cli.sfm.masks import PhotoMasks
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.scene import PointMap

LEFT = np.arange(40) < 20
TOP = np.arange(30) < 10
A, B, C = Path("a.jpg"), Path("b.jpg"), Path("c.jpg")


@dataclass(frozen=True)
class Halves:
    """Of a the left half, of b the left half and the top third, of c nothing."""

    names: tuple[str, ...] = ("left", "top")
    sources: tuple = ()

    def ignored(self, photo: Path) -> dict[str, np.ndarray]:
        left, top = np.tile(LEFT, (30, 1)), np.tile(TOP[:, None], (1, 40))
        return {A: {"left": left}, B: {"left": left, "top": top}, C: {}}[photo]


MASKS = PhotoMasks((Halves(),))
GRID = pixel_grid(30, 40)[::5, ::4].reshape(-1, 2) + 0.3


def test_matches_of_masked_keypoints_are_left_out_and_counted() -> None:
    count = len(GRID)
    colors = np.zeros((count, 3), np.uint8)
    pairs = {(0, 1): np.stack([np.arange(count)] * 2, 1).astype(np.uint32)}
    pairs[1, 2] = pairs[0, 1][::-1]
    found, report = MASKS.without_masked(Correspondences((GRID,) * 3, (colors,) * 3, (1.0,) * 3, pairs), [A, B, C])
    left, top = np.rint(GRID[:, 0]) < 20, np.rint(GRID[:, 1]) < 10
    np.testing.assert_array_equal(found.matches[0, 1], pairs[0, 1][~left & ~top])
    np.testing.assert_array_equal(found.matches[1, 2], pairs[1, 2][(~left & ~top)[::-1]])
    assert found.keypoints[1] is GRID  # they keep their numbers
    assert report.keypoints == 3 * count and report.by == {"left": 2 * left.sum(), "top": top.sum()}
    assert report.masked == left.sum() + (left | top).sum() and report.without == ()
    assert report.notes[0].startswith(f"{report.masked} of {report.keypoints} keypoints are masked")


def test_matches_of_two_photos() -> None:
    matches = Matches(GRID, GRID[:, ::-1] * [1, 0.5], np.ones(len(GRID)), 9, 9, 1.0, 1.0)
    kept, report = MASKS.matches_without_masked(matches, [A, C])
    assert len(kept.points1) == len(kept.points2) == len(kept.scores) == report.keypoints / 2 - report.masked
    assert (np.rint(kept.points1[:, 0]) >= 20).all() and kept.static_matches == 0
    _, all_masked = MASKS.matches_without_masked(
        Matches(np.zeros((3, 2)), np.ones((3, 2)), np.ones(3), 9, 9, 1.0, 1.0), [A, C]
    )
    assert all_masked.without == ("a.jpg",) and "the mask covers all keypoints of a.jpg" in all_masked.notes


def test_maps_have_no_points_at_masked_pixels_of_the_photo_with_its_lens() -> None:
    lens = Camera("SIMPLE_RADIAL", (30.0, 19.5, 14.5, -0.1), 40, 30)
    map_from_image = resize_transform(0.5, 0.5)
    dense = PointMap(
        np.zeros((15, 20, 3)), np.ones((15, 20)), np.ones((15, 20), bool), np.zeros((15, 20, 3), np.uint8),
        np.linalg.inv(map_from_image),
    )  # fmt: skip
    photo_pixels = lens.distort(transform_pixels(dense.image_from_map, pixel_grid(15, 20)))
    expected = (np.rint(photo_pixels[..., 0]) >= 20) & (np.rint(photo_pixels[..., 1]) >= 10)
    np.testing.assert_array_equal(MASKS.on_map(dense, B, lens).valid, expected)
    assert MASKS.on_map(dense, C).valid.all() and MASKS.used(C) is None
    assert not MASKS.used_at(C, np.array([[np.nan, 1.0]])).any()
