"""A house with equal fronts, photographed all around: photos of the back that are taken for the front go to their true
places, other scenes lose no pair, and things that move are noticed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dune_cli.geometry.poses import transform_points
from dune_cli.geometry.sim3 import similarity_from_points
from dune_cli.matchers.filtering import Thumbnail
from dune_cli.sfm.lookalikes import Judge, pairs_with_two_motions
from dune_cli.sfm.mapper import MappingConfig, map_photos
from dune_cli.sfm.scene import SfmModel
from dune_cli.sfm.verification import verify_pairs
from support import equal_facades


def turns_of(count: int) -> np.ndarray:
    return 2 * np.pi * np.arange(count) / count + np.random.default_rng(1).uniform(0.05, 0.15, count)


def judged(count: int, alike: bool, folder: Path, order: np.ndarray | None = None) -> tuple[np.ndarray, Judge]:
    turns = turns_of(count)
    turns = turns if order is None else turns[order]
    correspondences, cameras = equal_facades.photographed(turns, alike)
    verified = verify_pairs(correspondences, cameras, 0, noise)
    return turns, mapped(Judge(EMPTY, correspondences, verified, cameras), folder, set())


EMPTY = SfmModel({}, {}, np.zeros((0, 3)), np.zeros(0), {})


def noise(index: int) -> Thumbnail:
    return Thumbnail.of(np.random.default_rng(index).integers(0, 255, (480, 640, 3)).astype(np.uint8))


def mapped(judge: Judge, folder: Path, without: set[tuple[int, int]]) -> Judge:
    """Beside all pairs, the largest model of those that are left."""
    models = map_photos(judge.correspondences, judge.verified.without(without), judge.cameras, MappingConfig(), folder)
    return replace(judge, model=models[0])


def errors(model: SfmModel, turns: np.ndarray) -> np.ndarray:
    """(V,) of the centres, in metres."""
    true = equal_facades.world_from_cams(turns)[:, :3, 3]
    found = np.stack([model.world_from_cam[index][:3, 3] for index in range(len(turns))])
    return np.linalg.norm(transform_points(similarity_from_points(true, found), found) - true, axis=1)


def are_false(pairs: list[tuple[int, int]], turns: np.ndarray) -> np.ndarray:
    return np.array([np.cos(turns[i] - turns[j]) < 0 for i, j in pairs], dtype=bool)


@pytest.mark.parametrize("count", [16, 20])
def test_photos_of_the_back_leave_the_front(count: int, tmp_path: Path) -> None:
    turns, judge = judged(count, True, tmp_path)
    assert errors(judge.model, turns).max() > 3 and judge.contradicted  # the house is folded
    doubtful = sorted(judge.doubtful())
    assert are_false(doubtful, turns).mean() > 0.8  # a true pair that is given up as well agrees in the end
    restored = mapped(judge, tmp_path, set(doubtful))
    assert errors(restored.model, turns).max() < 0.05
    assert are_false(restored.contradicted, turns).all()
    assert len(restored.contradicted) == are_false(list(judge.verified.geometry), turns).sum() > 10


def test_a_house_with_four_different_sides_loses_no_pair(tmp_path: Path) -> None:
    turns, judge = judged(16, False, tmp_path)
    assert errors(judge.model, turns).max() < 0.05
    assert judge.agreement.keys() == judge.verified.geometry.keys()
    assert not judge.contradicted and not judge.doubtful()
    assert min(judge.agreement.values()) > 0.8
    assert pairs_with_two_motions(judge)[0] == 0


def test_points_that_should_be_there_are_missing_in_false_pairs(tmp_path: Path) -> None:
    turns, judge = judged(20, True, tmp_path, np.random.default_rng(3).permutation(20))
    agreeing = [pair for pair, share in judge.agreement.items() if share > 0.5]
    false = are_false(agreeing, turns)
    inliers = np.array([judge.verified.counts[pair][1] for pair in agreeing])
    weights = np.array([judge.weights[pair] for pair in agreeing]) / np.minimum(inliers, 300)
    assert np.median(weights[~false]) > 0.9 > 0.3 > np.median(weights[false])


def test_a_thing_that_moves_is_a_second_motion(tmp_path: Path) -> None:
    """A second house lies on its side and turns the other way."""
    turns, judge = judged(16, False, tmp_path)
    other = equal_facades.photographed(-turns, False, seed=1)[0]
    lying = replace(other, keypoints=tuple(pixels[:, ::-1].copy() for pixels in other.keypoints))
    both = judge.correspondences.joined(lying)
    verified = verify_pairs(both, judge.cameras, 0, noise)
    with_two, tested = pairs_with_two_motions(replace(judge, correspondences=both, verified=verified))
    assert with_two > 0.5 * tested > 5


def test_a_weak_pair_that_alone_ties_a_photo_is_no_tie(tmp_path: Path) -> None:
    _, judge = judged(16, False, tmp_path)
    tie = (4, 5)
    verified = judge.verified.without({pair for pair in judge.verified.geometry if 5 in pair and pair != tie})
    for inliers, confidence, weak in ((21, 0.05, {tie}), (21, 0.6, set()), (90, 0.05, set())):
        counts = {**verified.counts, tie: (50, inliers)}
        tied = replace(judge, verified=replace(verified, counts=counts, confidence={tie: confidence}))
        assert tied.weak_bridges() == weak
    pairs = dict.fromkeys(judge.verified.geometry, 0.05)
    counts = dict.fromkeys(judge.verified.geometry, (50, 21))
    assert not replace(judge, verified=replace(judge.verified, counts=counts, confidence=pairs)).weak_bridges()
