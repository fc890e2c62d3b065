"""Laws of the matching head with random weights: order does not matter, and what is new starts as nothing."""

from __future__ import annotations

import pytest
import torch

from dune_cli.models.lightglue import LightGlueConfig
from dune_cli.models.match_head import KeypointFeatures, MatchHead, MatchHeadConfig

CONFIG = MatchHeadConfig(glue=LightGlueConfig(layers=2, prune_below=0.0), match_threshold=0.0)


@pytest.fixture(scope="module")
def head() -> MatchHead:
    torch.manual_seed(3)
    made = MatchHead(CONFIG).eval().requires_grad_(False)
    for part in made.refinement.mlp[-1].parameters():
        part.normal_()
    return made


@pytest.fixture(scope="module")
def images() -> tuple[KeypointFeatures, KeypointFeatures]:
    torch.manual_seed(4)
    xy = torch.rand(60, 2) * 200
    values = torch.randn(60, sum(CONFIG.split))
    order = torch.randperm(60)[:50]
    return KeypointFeatures(xy, values, (256, 224)), KeypointFeatures(xy[order] + 3, values[order] + 0.1, (224, 256))


def matched(head: MatchHead, a: KeypointFeatures, b: KeypointFeatures) -> dict[tuple[int, int], float]:
    index0, index1, probability = head.match(head.embed(a), head.embed(b))
    return {(int(i), int(j)): float(p) for i, j, p in zip(index0, index1, probability)}


def test_swapped_images_give_swapped_matches(
    head: MatchHead, images: tuple[KeypointFeatures, KeypointFeatures]
) -> None:
    forth, back = matched(head, *images), matched(head, *images[::-1])
    assert len(forth) > 10
    assert {(j, i) for i, j in back} == set(forth)
    assert all(abs(forth[i, j] - p) < 1e-5 for (j, i), p in back.items())
    embedded = [head.embed(seen) for seen in images]
    index = torch.arange(20), torch.arange(20)
    one, other = head.offsets(*embedded, *index), head.offsets(*embedded[::-1], *index)
    torch.testing.assert_close(one, other[::-1])
    assert one[0].abs().max() > 0.01


def test_the_order_of_keypoints_does_not_matter(
    head: MatchHead, images: tuple[KeypointFeatures, KeypointFeatures]
) -> None:
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    shuffled = KeypointFeatures(images[0].xy[order], images[0].values[order], images[0].size)
    again = {(int(order[i]), j): p for (i, j), p in matched(head, shuffled, images[1]).items()}
    once = matched(head, *images)
    assert set(again) == set(once)
    assert all(abs(again[pair] - once[pair]) < 1e-5 for pair in once)


def test_a_new_head_ignores_its_context_and_moves_nothing(images: tuple[KeypointFeatures, KeypointFeatures]) -> None:
    head = MatchHead(CONFIG).eval()
    seen = images[0]
    other = KeypointFeatures(seen.xy, seen.values.clone(), seen.size)
    other.values[:, 64 : -CONFIG.split[-1]] += 1 + torch.rand_like(other.values[:, 64 : -CONFIG.split[-1]])
    width = CONFIG.glue.width
    torch.testing.assert_close(head.embed(seen).values[:, :width], head.embed(other).values[:, :width])
    embedded = head.embed(seen)
    assert head.offsets(embedded, embedded, torch.arange(5), torch.arange(5))[0].abs().max() == 0


def test_the_assignment_is_a_sub_probability(
    head: MatchHead, images: tuple[KeypointFeatures, KeypointFeatures]
) -> None:
    for layer in head.assign(*(head.embed(seen) for seen in images)):
        assert (layer.pairs.exp().sum(0) <= 1 + 1e-5).all()
        assert (layer.pairs.exp().sum(1) <= 1 + 1e-5).all()


def test_points_of_no_worth_are_pruned_to_nothing(images: tuple[KeypointFeatures, KeypointFeatures]) -> None:
    head = MatchHead(MatchHeadConfig(glue=LightGlueConfig(layers=2, prune_below=0.5))).eval().requires_grad_(False)
    for layer in head.glue.log_assignment:
        layer.matchability.bias.fill_(-1e3)
    assert all(len(part) == 0 for part in head.match(*(head.embed(seen) for seen in images)))


def test_without_refinement_nothing_is_sampled_for_it_or_moved() -> None:
    head = MatchHead(MatchHeadConfig(context=(), glue=LightGlueConfig(layers=2), fine=0), backbone=True).eval()
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(5))
    seen = head.embed(head.extract(image, head.xfeat(image), {}))
    assert seen.values.shape[1] == head.config.glue.width
    assert sum(head.config.split) == head.config.glue.inputs
    with pytest.raises(ValueError, match="no refinement"):
        head.offsets(seen, seen, torch.arange(0), torch.arange(0))
