"""XFeat + LighterGlue and ALIKED + LightGlue with their published weights; ALIKED is skipped where those are absent."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from dune_cli.checkpoints import weights_folder
from dune_cli.errors import PackageMissing
from dune_cli.io.photos import read_photo
from dune_cli.matchers import aliked_lightglue, registry, xfeat_lighterglue
from dune_cli.matchers.matcher import Matcher
from dune_cli.models.match_head import centre_of_mass
from support import warped
from support.kornia_matchers import KorniaAlikedLightGlue, KorniaXFeatLighterGlue

# the learned detectors place keypoints up to about a quarter pixel of the matched image off, alike in both photos
LIMITS = {"xfeat-lighterglue": (700, 0.65, 0.15), "aliked-lightglue": (700, 0.65, 0.25)}


ALIKED = pytest.param("aliked-lightglue", marks=pytest.mark.weights("aliked-n16", "aliked-lightglue"))


@pytest.fixture(scope="module", params=[ALIKED, "xfeat-lighterglue"])
def matcher(request: pytest.FixtureRequest) -> Matcher:
    if request.param == "aliked-lightglue":
        return aliked_lightglue.AlikedLightGlue(working_size_px=512)  # its own size takes several times as long
    return registry.load_matcher(request.param)


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


@pytest.mark.slow
@pytest.mark.weights("xfeat", "xfeat-lighterglue")
def test_xfeat_lighterglue_matches_as_kornia_does(example_photos: Path) -> None:
    """The bundled float16 weights against kornia on the published float32 ones. Measured: 99.2 % of 1107 matches."""
    ours, theirs = registry.load_matcher("xfeat-lighterglue", "cpu"), KorniaXFeatLighterGlue()
    pair = [read_photo(example_photos / f"motorcycle_{side}.png").rgb for side in ("left", "right")]
    found, wanted = ours.match(*pair), theirs.match(*pair)
    assert len(wanted.points1) > 1000
    assert abs(len(found.points1) - len(wanted.points1)) <= 0.01 * len(wanted.points1)
    mine, its = (np.hstack([m.points1, m.points2]) for m in (found, wanted))
    distance, index = cKDTree(mine).query(its)
    same = distance < 0.05  # pixels of both photos together
    assert same.mean() >= 0.98
    assert np.median(np.abs(found.scores[index[same]] - wanted.scores[same])) < 2e-3


def test_xfeat_lighterglue_needs_neither_kornia_nor_a_weights_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliked_lightglue.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(weights_folder, "_installed", lambda entry: iter(()))
    monkeypatch.setitem(sys.modules, "kornia", None)
    assert registry.availability("xfeat-lighterglue").ready
    assert registry.choose_auto()[0] == "xfeat-lighterglue"
    matcher = registry.load_matcher("auto", "cpu")
    assert matcher.name == "xfeat-lighterglue"
    assert matcher.source.name == xfeat_lighterglue.WEIGHTS
    assert matcher.source.licence == "Apache-2.0"
    small = warped.astronaut()[100:300, 100:360]
    assert len(matcher.match(small, small[10:, 5:]).points1) > 50


def test_xfeat_features_can_be_kept() -> None:
    matcher = registry.load_matcher("xfeat-lighterglue", "cpu")
    rgb = warped.astronaut()[100:300, 100:360]
    features = [matcher.extract(photo) for photo in (rgb, rgb[10:, 5:])]
    again = [matcher.unpack(matcher.pack(f)) for f in features]
    once, twice = matcher.match_features(*features), matcher.match_features(*again)
    assert len(once.points1) > 50
    assert abs(len(once.points1) - len(twice.points1)) <= 0.02 * len(once.points1)


def test_without_kornia_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliked_lightglue.importlib.util, "find_spec", lambda name: None)
    state = registry.availability("aliked-lightglue")
    assert not state.ready and state.cure == "pip install kornia"
    monkeypatch.delitem(sys.modules, "kornia.feature", raising=False)
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(PackageMissing, match=r"needs the package kornia, .* run: pip install kornia"):
        registry.load_matcher("aliked-lightglue", "cpu")


@pytest.mark.slow
@pytest.mark.weights("aliked-n16", "aliked-lightglue")
def test_lightglue_for_aliked_matches_as_kornia_does(example_photos: Path) -> None:
    """Measured on six pairs: the same matches, scores within 1.5e-4; layers are skipped on some of them."""
    ours, theirs = aliked_lightglue.AlikedLightGlue("cpu", 512), KorniaAlikedLightGlue(512)
    pair = [read_photo(example_photos / f"motorcycle_{side}.png").rgb for side in ("left", "right")]
    features = [ours.extract(rgb) for rgb in pair]
    found, wanted = ours.match_indices(*features), theirs.match_indices(*features)
    assert len(wanted[0]) > 1000
    scores = [dict(zip(zip(i.tolist(), j.tolist()), s)) for i, j, s in (found, wanted)]
    same = scores[0].keys() & scores[1].keys()
    assert len(same) >= 0.995 * max(map(len, scores))
    assert max(abs(scores[0][match] - scores[1][match]) for match in same) < 2e-3
