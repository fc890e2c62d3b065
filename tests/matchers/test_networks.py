"""XFeat + LighterGlue and ALIKED + LightGlue with the weights that come with dune."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from dune_cli.checkpoints import weights_folder
from dune_cli.io.photos import read_photo
from dune_cli.matchers import aliked_lightglue, registry
from dune_cli.matchers.matcher import Features, Matcher, Matches, ResizedImage
from dune_cli.models.match_head import centre_of_mass
from support import warped
from support.kornia_matchers import KorniaAlikedLightGlue, KorniaXFeatLighterGlue

# the learned detectors place keypoints up to about a quarter pixel of the matched image off, alike in both photos
LIMITS = {"xfeat-lighterglue": (700, 0.65, 0.15), "aliked-lightglue": (700, 0.65, 0.25)}


@pytest.fixture(scope="module")
def aliked() -> aliked_lightglue.AlikedLightGlue:
    """Exact, and at a third of its own size, which takes several times as long."""
    return aliked_lightglue.AlikedLightGlue("cpu", 512, dtype="float32")


@pytest.fixture(scope="module", params=["aliked-lightglue", "xfeat-lighterglue"])
def matcher(request: pytest.FixtureRequest, aliked: Matcher) -> Matcher:
    return aliked if request.param == "aliked-lightglue" else registry.load_matcher(request.param)


@pytest.mark.slow
@pytest.mark.parametrize("homography", [warped.SHIFT, warped.ENLARGED])
def test_known_homographies(matcher: Matcher, homography: np.ndarray) -> None:
    warped.check(warped.errors_px(matcher, homography), *LIMITS[matcher.name])


@pytest.mark.slow
def test_deterministic_and_indifferent_to_the_order_of_calls(matcher: Matcher) -> None:
    small = warped.astronaut()[100:300, 100:360]
    first = matcher.match(small, small[10:, 5:])
    matcher.match(small[::-1], small)
    second = matcher.match(small, small[10:, 5:])
    assert len(first.points1) > 50
    np.testing.assert_array_equal(first.points1, second.points1)
    np.testing.assert_array_equal(first.points2, second.points2)


def test_no_texture_gives_no_matches(matcher: Matcher) -> None:
    grey = np.full((64, 96, 3), 128, np.uint8)
    found = matcher.match(grey, grey)
    assert found.points1.shape == found.points2.shape
    assert len(found.points1) <= min(found.keypoints1, found.keypoints2)


def test_source_names_the_weights_and_their_licence(matcher: Matcher) -> None:
    assert matcher.source.sha256 is not None
    assert matcher.source.licence != "unknown"


def test_xfeat_keypoints_are_moved_to_the_centre_of_mass() -> None:
    torch = pytest.importorskip("torch")
    heatmap = torch.zeros(20, 30)
    heatmap[10, 12], heatmap[10, 13], heatmap[9, 12] = 0.5, 0.3, 0.2
    moved = centre_of_mass(heatmap[None, None], torch.tensor([[12, 10]]))
    np.testing.assert_allclose(moved.numpy(), [[12.3, 9.8]], atol=1e-6)
    corner = torch.zeros(20, 30)
    corner[0, 0] = 1
    np.testing.assert_allclose(centre_of_mass(corner[None, None], torch.tensor([[0, 0]])).numpy(), [[0, 0]])


def check_same_matches(found: Matches, wanted: Matches) -> None:
    """At least 98 % of over 1000 matches are the same, and of equal scores."""
    assert len(wanted.points1) > 1000
    assert abs(len(found.points1) - len(wanted.points1)) <= 0.01 * len(wanted.points1)
    mine, its = (np.hstack([m.points1, m.points2]) for m in (found, wanted))
    distance, index = cKDTree(mine).query(its)
    same = distance < 0.05  # pixels of both photos together
    assert same.mean() >= 0.98
    assert np.median(np.abs(found.scores[index[same]] - wanted.scores[same])) < 2e-3


@pytest.mark.slow
@pytest.mark.weights("xfeat", "xfeat-lighterglue")
def test_xfeat_lighterglue_matches_as_kornia_does(example_photos: Path) -> None:
    """The bundled float16 weights against kornia on the published float32 ones. Measured: 99.2 % of 1107 matches."""
    ours, theirs = registry.load_matcher("xfeat-lighterglue", "cpu"), KorniaXFeatLighterGlue()
    pair = [read_photo(example_photos / f"motorcycle_{side}.png").rgb for side in ("left", "right")]
    found, wanted = ours.match(*pair), theirs.match(*pair)
    check_same_matches(found, wanted)


@pytest.mark.parametrize("name", ["aliked-lightglue", "xfeat-lighterglue"])
def test_bundled_matchers_need_no_weights_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_folder, "_installed", lambda entry: iter(()))
    monkeypatch.setitem(sys.modules, "kornia", None)
    assert registry.availability(name).ready
    matcher = registry.load_matcher(name, "cpu")
    assert matcher.source.name == f"{name}-bundled"
    assert matcher.source.licence == weights_folder.locate(matcher.source.name).entry.licence


def test_features_can_be_kept(matcher: Matcher) -> None:
    rgb = warped.astronaut()[100:300, 100:360]
    features = [matcher.extract(photo) for photo in (rgb, rgb[10:, 5:])]
    again = [matcher.unpack(matcher.pack(f)) for f in features]
    once, twice = matcher.match_features(*features), matcher.match_features(*again)
    assert len(once.points1) > 50
    assert abs(len(once.points1) - len(twice.points1)) <= 0.02 * len(once.points1)


def _as_dict(found: Sequence[np.ndarray]) -> dict[tuple[int, int], float]:
    return {(int(i), int(j)): float(score) for i, j, score in zip(*found)}


def test_the_best_keypoints_are_matched_first_and_the_rest_where_they_match_too_little(
    aliked: aliked_lightglue.AlikedLightGlue, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = warped.astronaut()[100:240, 100:300]
    features = [aliked.extract(rgb) for rgb in (small, small[6:, 8:])]
    whole = _as_dict(aliked._match(*features))
    monkeypatch.setattr(aliked, "first_keypoints", 256)
    monkeypatch.setattr(aliked_lightglue, "ENOUGH_MATCHES", 20)
    first = _as_dict(aliked.match_indices(*features))
    assert 20 <= len(first) < len(whole) and max(map(max, first)) < 256
    monkeypatch.setattr(aliked_lightglue, "ENOUGH_MATCHES", 10_000)
    assert _as_dict(aliked.match_indices(*features)) == whole


def test_photos_that_are_extracted_at_once_have_the_same_features(aliked: aliked_lightglue.AlikedLightGlue) -> None:
    photos, before = [warped.astronaut()[100:180, 100:240], warped.astronaut()[:60, 200:300]], torch.get_num_threads()
    torch.set_num_threads(1)
    alone = [aliked.extract(rgb) for rgb in photos]
    torch.set_num_threads(2)
    try:
        for one, of_both in zip(alone, aliked.extract_all(photos)):
            assert np.array_equal(one.points, of_both.points)
            assert torch.equal(one.descriptors, of_both.descriptors)
    finally:
        torch.set_num_threads(before)


def test_half_precision_of_the_trunk_changes_little(aliked: aliked_lightglue.AlikedLightGlue) -> None:
    """Where bfloat16 is chosen by `--dtype auto`."""
    half = aliked_lightglue.AlikedLightGlue("cpu", 512, dtype="bfloat16")
    small = warped.astronaut()[100:240, 100:300]
    features = [aliked.extract(rgb) for rgb in (small, small[6:, 8:])]
    exact, rounded = _as_dict(aliked._match(*features)), _as_dict(half._match(*features))
    assert len(exact.keys() & rounded.keys()) >= 0.95 * max(len(exact), len(rounded)) > 200


@pytest.mark.slow
@pytest.mark.weights("aliked-n16", "aliked-lightglue")
def test_aliked_lightglue_matches_as_kornia_does(aliked: Matcher, example_photos: Path) -> None:
    """The bundled float16 weights against kornia on the published float32 ones."""
    theirs = KorniaAlikedLightGlue(512)
    pair = [read_photo(example_photos / f"motorcycle_{side}.png").rgb for side in ("left", "right")]
    aliked.first_keypoints, first = 2048, aliked.first_keypoints
    found, wanted = aliked.match(*pair), theirs.match(*pair)
    aliked.first_keypoints = first
    check_same_matches(found, wanted)


def test_aliked_lightglue_gives_the_recorded_matches(
    aliked: aliked_lightglue.AlikedLightGlue, example_photos: Path, parity: Path
) -> None:
    """What kornia 0.9.0 gave on the published float32 weights for two crops of a photo at their own size."""
    torch = pytest.importorskip("torch")
    wanted = np.load(parity / "aliked_lightglue.npz")
    height, width = wanted["size"]
    astronaut = read_photo(example_photos / "astronaut.png").rgb
    recorded = []
    for side, (y, x) in enumerate(wanted["corners"], 1):
        crop = astronaut[y : y + height, x : x + width]
        expected_xy, expected = wanted[f"xy{side}"].astype(np.float64), wanted[f"descriptors{side}"].astype(np.float32)
        xy, descriptors = aliked._detect(crop)
        distance, index = cKDTree(xy).query(expected_xy)
        assert (distance < 0.02).mean() >= 0.99 and abs(len(xy) - len(expected)) <= 0.01 * len(expected)
        assert np.quantile((descriptors.numpy()[index] * expected).sum(1), 0.05) > 0.999
        recorded.append(Features(ResizedImage(crop, (1.0, 1.0)), expected_xy, torch.from_numpy(expected)))
    found, expected_matches = (
        _as_dict(aliked._match(*recorded)),
        _as_dict([wanted[key] for key in ("1", "2", "scores")]),
    )
    same = found.keys() & expected_matches.keys()
    assert len(same) >= 0.99 * max(len(found), len(expected_matches)) > 150
    assert max(abs(found[match] - expected_matches[match]) for match in same) < 0.02
