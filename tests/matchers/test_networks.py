"""XFeat + LighterGlue and ALIKED + LightGlue with their published weights; skipped where those are absent."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import warped

from dune_cli.errors import CheckpointError, PackageMissing
from dune_cli.matchers import _kornia, aliked_lightglue, load, xfeat_lighterglue
from dune_cli.matchers.base import Matcher

# the learned detectors place keypoints up to about a quarter pixel of the matched image off, alike in both photos
LIMITS = {"xfeat-lighterglue": (700, 0.65, 0.15), "aliked-lightglue": (700, 0.65, 0.25)}


@pytest.fixture(scope="module", params=sorted(LIMITS))
def matcher(request: pytest.FixtureRequest) -> Matcher:
    state = load.availability(request.param)
    if not state.ready:
        pytest.skip(f"{request.param}: {state.why}")
    if request.param == "aliked-lightglue":
        return aliked_lightglue.AlikedLightGlue(working_size_px=512)  # its own size takes several times as long
    return load.load_matcher(request.param)


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
    moved = xfeat_lighterglue._centre_of_mass(heatmap, torch.tensor([[12, 10]]))
    np.testing.assert_allclose(moved.numpy(), [[12.3, 9.8]], atol=1e-6)
    corner = torch.zeros(20, 30)
    corner[0, 0] = 1
    np.testing.assert_allclose(xfeat_lighterglue._centre_of_mass(corner, torch.tensor([[0, 0]])).numpy(), [[0, 0]])


def test_without_kornia_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kornia.importlib.util, "find_spec", lambda name: None)
    state = load.availability("aliked-lightglue")
    assert not state.ready
    assert state.cure == "pip install 'dune-cli[matchers]'"
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(PackageMissing, match=r"pip install 'dune-cli\[matchers\]'"):
        _kornia.require_features()


def test_weights_that_do_not_fit_are_an_error_that_lists_the_keys() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"missing keys \['bias'\], unexpected keys \['other'\]"):
        _kornia.fill(module, {"weight": torch.zeros(2, 2), "other": torch.zeros(1)}, "test")
    with pytest.raises(CheckpointError, match="does not fit"):
        _kornia.fill(module, {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, "test")
