"""LoMa-B128 against the published implementation's outputs (tests/parity, loma_b128), and what it promises besides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dune_cli.checkpoints.adapters import loma
from dune_cli.models.lightglue_inference import PackedLightGlue
from dune_cli.models.loma import LomaNetwork
from support.loma_files import FIXTURE, published_state
from support.published_files import Fixture, deviation

# absolute; samples and matches amplify the rounding of keypoints and descriptors. The slips that the fixture was tried
# with (docs/models/loma.md) all exceed 4e-3
LOGITS, KEYPOINTS, DESCRIPTORS, SAMPLES, SCORES = 1e-5, 1e-6, 5e-6, 3e-5, 3e-4


@pytest.fixture(scope="module")
def network() -> LomaNetwork:
    return loma.build(published_state()).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return Fixture(FIXTURE)


@pytest.fixture(scope="module")
def found(network: LomaNetwork, fixture: Fixture) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Positions and descriptors of both images."""
    answers = []
    with torch.inference_mode():
        for seed in fixture.config["image_seeds"]:
            image = fixture.image(seed)
            xy, _ = network.detector(image, fixture.config["num_keypoints"])
            answers.append((xy, network.descriptor(image, xy)))
    return answers


@pytest.mark.parametrize("index", [0, 1])
def test_keypoints_and_descriptors(
    network: LomaNetwork, fixture: Fixture, found: list[tuple[torch.Tensor, torch.Tensor]], index: int
) -> None:
    config, expected = fixture.config, fixture.expected
    image, stride = fixture.image(config["image_seeds"][index]), config["scoremap_stride"]
    with torch.inference_mode():
        logits = network.detector.logits(image)
        xy, probabilities = network.detector(image, config["num_keypoints"])
        grid = network.descriptor.dense_map(image)[0]
    assert deviation(logits[::stride, ::stride], expected[f"{index}/scoremap"]) < LOGITS
    assert deviation(xy, expected[f"{index}/keypoints"]) < KEYPOINTS
    assert deviation(probabilities, expected[f"{index}/keypoint_probs"]) < 1e-8
    assert deviation(grid[::9, ::8, ::8], expected[f"{index}/description_grid"]) < DESCRIPTORS
    assert deviation(found[index][1][:, ::9], expected[f"{index}/descriptors"]) < SAMPLES


@pytest.mark.parametrize("packed", [False, True])
def test_scores_and_matches(
    network: LomaNetwork, fixture: Fixture, found: list[tuple[torch.Tensor, torch.Tensor]], packed: bool
) -> None:
    expected = fixture.expected
    (xy0, descriptors0), (xy1, descriptors1) = found
    glue = PackedLightGlue(network.glue) if packed else network.glue
    with torch.inference_mode():
        embedded = glue.input_proj(descriptors0), glue.input_proj(descriptors1)
        index0, index1, scores = glue.match(*embedded, xy0, xy1, fixture.config["config"]["filter_threshold"])
        last = network.glue(*embedded, xy0, xy1)[-1]
    matched = np.full(len(xy0), -1)
    matched[index0] = index1
    np.testing.assert_array_equal(matched, expected["matches0"])
    assert np.abs(scores.numpy() - expected["match_scores0"][index0]).max() < SCORES
    assert deviation(last.pairs.exp()[::3, ::3], expected["scores"]) < SCORES
    assert torch.isinf(last.none0).all()  # without matchability every point has a match


def test_half_precision_of_the_convolutions_changes_little(network: LomaNetwork, fixture: Fixture) -> None:
    """Where a GPU runs them in bfloat16: the sums stay in float32."""
    image = fixture.image(fixture.config["image_seeds"][0])[..., :48, :64]
    with torch.inference_mode():
        exact = network.detector.logits(image), network.descriptor.dense_map(image)
        network.convolve_in(torch.bfloat16)
        try:
            rounded = network.detector.logits(image), network.descriptor.dense_map(image)
        finally:
            network.convolve_in(torch.float32)
    for a, b in zip(exact, rounded):
        assert b.dtype == torch.float32
        assert 0 < float((a - b).square().mean().sqrt()) < 0.05 * float(a.square().mean().sqrt())


def test_an_image_with_few_maxima_has_few_keypoints(network: LomaNetwork) -> None:
    with torch.inference_mode():
        xy, probabilities = network.detector(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)), 2048)
        descriptors = network.descriptor(torch.zeros(1, 3, 8, 16), xy)
    assert 0 < len(xy) == len(probabilities) == len(descriptors) <= 16
    assert (probabilities > 0).all() and (probabilities.diff() <= 0).all() and xy.abs().max() < 1.25
