"""The matcher loma-b128 on small photos, with the deterministic weights of the parity fixture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dune_cli.errors import WeightsMissing
from dune_cli.matchers import registry
from dune_cli.matchers.loma_b128 import LomaB128, detection_size
from support import warped
from support.loma_files import shared_loma


@pytest.fixture(scope="module")
def matcher() -> Iterator[LomaB128]:
    """At an eighth of its size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUNE_WEIGHTS", str(shared_loma()))
        yield LomaB128("cpu", working_size_px=128, description_px=96, max_keypoints=100)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (4000, 3000, (1024, 768)),
        (4032, 3024, (1024, 768)),
        (640, 427, (1024, 680)),
        (3, 5, (608, 1024)),
        (9, 9000, (8, 1024)),
        (1, 1, (1024, 1024)),
    ],
)
def test_sides_of_the_detector_are_the_published_ones(width: int, height: int, expected: tuple[int, int]) -> None:
    assert detection_size(width, height, 1024) == expected


@pytest.mark.parametrize("shape", [(101, 67), (1, 1), (5, 300), (13, 15)])
def test_photos_of_any_size(matcher: LomaB128, shape: tuple[int, int]) -> None:
    height, width = shape
    rgb = np.random.default_rng(3).integers(0, 255, (height, width, 3), dtype=np.uint8)
    features = matcher.extract(rgb)
    points = features.photo.to_original(features.points)
    assert 0 < len(points) == len(features.descriptors) <= 100
    assert (points >= -0.5).all() and (points <= np.array([width, height]) - 0.5).all()
    found = matcher.match_features(features, matcher.unpack(matcher.pack(features)))
    assert found.points1.shape == found.points2.shape and found.scores.dtype == np.float32
    assert ((found.scores >= 0.1) & (found.scores <= 1)).all()


def test_no_texture_gives_no_matches(matcher: LomaB128) -> None:
    grey = np.full((64, 96, 3), 128, np.uint8)
    assert len(matcher.match(grey, grey).points1) <= 100
    nothing = matcher.extract(grey)
    empty = type(nothing)(nothing.photo, nothing.points[:0], nothing.descriptors[:0])
    assert len(matcher.match_features(empty, nothing).points1) == 0


def test_a_photo_matches_itself_turned_and_kept(matcher: LomaB128) -> None:
    rgb = warped.astronaut()[100:260, 100:300]
    upright, turned = matcher.extract(rgb), matcher.extract_rotated(rgb, 2)
    again = matcher.unpack(matcher.pack(upright))
    np.testing.assert_allclose(again.points, upright.points, atol=1e-4)
    np.testing.assert_allclose(again.descriptors.numpy(), upright.descriptors.numpy(), atol=2e-3)
    # the network's own keypoints, at the pixels of the photo as it is
    points = turned.photo.to_original(turned.points)
    assert (points >= -0.5).all() and (points <= np.array([200, 160]) - 0.5).all()
    assert matcher.source.licence.startswith("none stated") and matcher.source.sha256 is not None


def test_missing_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUNE_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = registry.availability("loma-b128")
    assert not state.ready and state.cure == "dune weights pull loma-b128"
    assert registry.choose_auto()[0] == "aliked-lightglue"
    with pytest.raises(WeightsMissing, match=r"loma_B128\.pth.*run 'dune weights pull loma-b128' \(about 127 MB"):
        registry.load_matcher("loma-b128")
