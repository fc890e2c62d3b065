"""The matcher `dune`: at its start it is XFeat + LighterGlue; its files; what it refuses."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dune_cli.checkpoints import adapters
from dune_cli.checkpoints.loader import load_match_head
from dune_cli.checkpoints.third_party import continue_match_head
from dune_cli.errors import CheckpointError
from dune_cli.matchers import registry
from dune_cli.matchers.dune import Dune, EncoderExtractor
from dune_cli.matchers.matcher import ResizedImage
from dune_cli.models.dune_mini import MiniConfig, MiniEncoder
from dune_cli.models.match_head import MatchHead, MatchHeadConfig
from dune_cli.training.common.export import write_weights
from dune_cli.training.matcher.finalize import head_weights
from support import match_files, warped
from support.kornia_matchers import KorniaXFeatLighterGlue

pytestmark = pytest.mark.weights("efficientnet-lite2")  # the stem's part lite


@pytest.fixture(scope="module")
def extractor() -> EncoderExtractor:
    return EncoderExtractor(match_files.small_encoder())


@pytest.fixture(scope="module")
def head(extractor: EncoderExtractor) -> MatchHead:
    return match_files.begun_head()


@pytest.mark.weights("xfeat", "xfeat-lighterglue")
def test_at_its_start_it_is_xfeat_and_lighterglue(extractor: EncoderExtractor) -> None:
    theirs = KorniaXFeatLighterGlue(512, 512)
    ours = Dune(extractor, match_files.begun_head(MatchHeadConfig(long_side_px=512, max_keypoints=512)))
    rgb = warped.astronaut()
    pair = rgb, cv2.warpPerspective(rgb, warped.TILTED, (480, 448))
    found, wanted = [[m.extract(p) for p in pair] for m in (ours, theirs)]
    for mine, its in zip(found, wanted):
        np.testing.assert_allclose(mine.points, its.points, atol=1e-4)
    seen = [extractor.extract(f.photo.rgb, ours.head) for f in found]
    for mine, its in zip(seen, wanted):
        torch.testing.assert_close(mine.values[:, :64], its.descriptors, atol=1e-4, rtol=0)
    index = ours.match_indices(*found)
    expected = theirs.match_indices(*wanted)
    assert len(index[0]) > 100
    np.testing.assert_array_equal(index[:2], expected[:2])
    np.testing.assert_allclose(index[2], expected[2], atol=5e-4)  # float32 sums in another order


def test_known_homography(extractor: EncoderExtractor) -> None:
    matcher = Dune(extractor, match_files.begun_head(MatchHeadConfig(long_side_px=640, max_keypoints=1024)))
    warped.check(warped.errors_px(matcher, warped.SHIFT), 200, 0.8, 0.2)


def test_packed_descriptors_match_alike(extractor: EncoderExtractor, head: MatchHead) -> None:
    matcher = Dune(extractor, head)
    rgb = warped.astronaut()
    features = [matcher.extract(photo) for photo in (rgb, rgb[10:, 20:])]
    again = [matcher.unpack(matcher.pack(f)) for f in features]
    assert matcher.pack(features[0])["descriptors"].dtype == np.float16
    once, twice = matcher.match_features(*features), matcher.match_features(*again)
    assert len(once.points1) > 30
    assert abs(len(once.points1) - len(twice.points1)) <= 3


def test_no_texture_gives_no_matches(extractor: EncoderExtractor, head: MatchHead) -> None:
    grey = ResizedImage(np.full((64, 96, 3), 128, np.uint8), (1.0, 1.0)).rgb
    found = Dune(extractor, head).match(grey, grey)
    assert found.points1.shape == found.points2.shape


def test_the_file_holds_the_head(head: MatchHead, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    write_weights(path, *head_weights(head, {}))
    again = load_match_head(path, "cpu")
    assert again.config == head.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), head.state_dict().values()))
    assert again.source.sha256
    tensors, header = adapters.to_safetensors(adapters.dune_matcher.checkpoint_of(head))
    described = adapters.describe(tensors, header)
    assert described.kind == "matcher"
    assert "tokens" in " ".join(described.notes)


def test_a_head_can_go_on_with_more_context() -> None:
    old = MatchHead(MatchHeadConfig(context=("xfeat4",)))
    new = continue_match_head(MatchHeadConfig(context=("xfeat4", "tokens")), 0, old)
    assert torch.equal(new.glue.input_proj.weight, old.glue.input_proj.weight)
    assert new.context["tokens"].proj.weight.abs().max() == 0


def test_settings_that_do_not_fit_are_refused(head: MatchHead, tmp_path: Path) -> None:
    tree = adapters.dune_matcher.checkpoint_of(head)
    for wrong, says in (
        ({"max_keypoints": "many"}, "max_keypoints is 'many'"),
        ({"context": ["colour"]}, "no context out of xfeat4"),
        ({"surprise": 1}, "its settings are"),
    ):
        with pytest.raises(CheckpointError, match=says):
            adapters.dune_matcher.build({**tree, "settings": tree["settings"] | wrong})


def test_encoders_and_files_of_another_kind_are_refused(extractor: EncoderExtractor, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"stem is xfeat\+lite"):
        EncoderExtractor(MiniEncoder(MiniConfig(depth=1)))
    path = match_files.write_encoder(tmp_path / "mini.safetensors", extractor.mini)
    with pytest.raises(CheckpointError, match="not a matcher model"):
        load_match_head(path, "cpu")


def test_by_name_it_takes_the_two_files(extractor: EncoderExtractor, head: MatchHead, tmp_path: Path) -> None:
    encoder = match_files.write_encoder(tmp_path / "mini.safetensors", extractor.mini)
    write_weights(tmp_path / "head.safetensors", *head_weights(head, {}))
    matcher = registry.load_matcher("dune", "cpu", model=str(tmp_path / "head.safetensors"), encoder=str(encoder))
    assert matcher.name == "dune"
    assert matcher.working_size_px == head.config.long_side_px
