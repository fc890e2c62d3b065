"""Descriptors of a two-view model as matches, with the deterministic weights of the parity fixture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dune_cli.geometry.cameras import quarter_turn, transform_pixels
from dune_cli.io.preprocess import prepare
from dune_cli.matchers.mast3r import Mast3r
from dune_cli.matchers.nearest_neighbours import reciprocal_matches
from dune_cli.matchers.registry import load_matcher
from support.published_files import Fixture, mast3r_tree


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fixture = Fixture("mast3r_mini")
    path = tmp_path_factory.mktemp("mini") / "mini.pth"
    torch.save(mast3r_tree(fixture.config["model"], fixture.state()), path)
    return path


def photos() -> tuple[np.ndarray, np.ndarray]:
    """The fixture's two smooth random images, one of them twice as large."""
    fixture = Fixture("mast3r_mini")
    rgb1, rgb2 = (
        (255 * fixture.image(seed)[0].permute(1, 2, 0).numpy()).round().astype(np.uint8)
        for seed in fixture.config["image_seeds"]
    )
    return rgb1, rgb2.repeat(2, axis=0).repeat(2, axis=1)


def test_matches_are_the_descriptors_reciprocal_neighbours(file: Path) -> None:
    rgb1, rgb2 = photos()
    matcher = Mast3r(str(file), dtype="float32", size_px=160)
    found = matcher.match(rgb1, rgb2)
    prepared = [prepare(rgb, 160, 16, matcher.model.crop_square_to_4_3) for rgb in (rgb1, rgb2)]
    output = matcher.model(*(torch.from_numpy(p.image)[None] for p in prepared))
    xy1, xy2 = reciprocal_matches(output.descriptors1[0], output.descriptors2[0], 8)
    assert len(found.points1) == len(xy1) > 20
    np.testing.assert_allclose(found.points1, xy1.numpy(), atol=1e-9)
    np.testing.assert_allclose(found.points2, (xy2.numpy() + 0.5) * 2 - 0.5, atol=1e-9)
    assert (found.pixel_size1, found.pixel_size2) == pytest.approx((1, 2))
    confidence = output.descriptor_confidence1[0][xy1[:, 1], xy1[:, 0]]
    confidence = confidence * output.descriptor_confidence2[0][xy2[:, 1], xy2[:, 0]]
    np.testing.assert_array_equal(np.argsort(found.scores), np.argsort(confidence.numpy()))
    assert 0 < found.scores.min() < found.scores.max() < 1


def test_loaded_by_name_it_carries_the_models_source(file: Path) -> None:
    matcher = load_matcher("mast3r", device="cpu", dtype="float32", model=str(file))
    assert matcher.working_size_px == 512
    assert matcher.source.sha256 is not None


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_matches_of_a_turned_photo_are_at_the_pixels_of_the_photo_as_it_is(file: Path, turns: int) -> None:
    rgb1, rgb2 = photos()
    matcher = Mast3r(str(file), dtype="float32", size_px=160)
    one = matcher.extract(rgb1)
    turned = np.ascontiguousarray(np.rot90(rgb2, -turns))  # clockwise
    found = matcher.match_features(one, matcher.extract_rotated(rgb2, turns))
    expected = matcher.match_features(one, matcher.extract(turned))
    assert len(found.points2) > 20
    rotated = transform_pixels(quarter_turn(rgb2.shape[1], rgb2.shape[0], turns), found.points2)
    np.testing.assert_allclose(rotated, expected.points2, atol=1e-9)
    np.testing.assert_array_equal(found.points1, expected.points1)
