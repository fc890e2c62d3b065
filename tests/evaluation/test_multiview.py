"""Scores of reconstructed photo sets, and a made-up set through the real path beside pycolmap's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dune_cli.errors import JobFailed
from dune_cli.evaluation import multiview as benchmark
from dune_cli.evaluation.posed_sets import PosedSet, read_posed_sets
from dune_cli.geometry import poses
from dune_cli.geometry.sim3 import move_poses
from dune_cli.matchers.sift import Sift
from dune_cli.tasks.reconstruct.config import MatchesConfig
from support import synthetic_scenes
from support.posed_sets import POSES, VIEWS, write_set


@pytest.fixture(scope="module")
def posed(tmp_path_factory: pytest.TempPathFactory) -> PosedSet:
    return read_posed_sets(write_set(tmp_path_factory.mktemp("sets")))[0]


def test_true_cameras_in_another_world_are_perfect(posed: PosedSet) -> None:
    move = synthetic_scenes.pose((0.4, 1.0, -2.0), (3.0, 4.0, 5.0))
    move[:3, :3] *= 6
    score = benchmark.score(posed, "m", move_poses(move, POSES), 1.5)
    assert (score.registered, score.completeness, score.auc5, score.auc30) == (5, 1, pytest.approx(1), pytest.approx(1))
    for value in (score.rotation_deg, score.centre, score.pair_rotation_deg, score.scale_error):
        assert value == pytest.approx(0, abs=1e-4)
    assert score.pair_direction_deg == pytest.approx(0, abs=1e-3)


def test_missing_photos_cost_pairs_and_completeness(posed: PosedSet) -> None:
    estimated = POSES.copy()
    estimated[4] = np.nan
    score = benchmark.score(posed, "m", estimated, 0.0)
    assert (score.registered, score.completeness) == (4, 0.8)
    assert score.auc10 == pytest.approx(0.6), "6 of 10 pairs have both photos"
    assert score.rotation_deg == pytest.approx(0, abs=1e-4)


def test_the_scale_is_that_of_the_first_two(posed: PosedSet) -> None:
    """The first step is found a tenth too long, all else right: lengths are then off by about a tenth."""
    estimated = POSES.copy()
    estimated[0, :3, 3] -= 0.1 * (POSES[1, :3, 3] - POSES[0, :3, 3])
    score = benchmark.score(posed, "m", estimated, 0.0)
    assert score.scale_error == pytest.approx(1 - 1 / 1.1, abs=0.02)
    assert score.scale_error_neighbours < 0.03


def test_no_cameras_at_all(posed: PosedSet) -> None:
    def fails(posed: PosedSet, known: bool) -> np.ndarray:
        raise JobFailed("no connected component")

    score = benchmark.run_method(posed, "m", fails, True)
    assert (score.registered, score.completeness, score.auc30) == (0, 0, 0)
    assert np.isnan(score.rotation_deg)
    assert score.reason == "no connected component"


def test_arbitrary_sets_have_no_scale(tmp_path: Path) -> None:
    posed = read_posed_sets(write_set(tmp_path, scale="arbitrary"))[0]
    assert np.isnan(benchmark.score(posed, "m", POSES, 0.0).scale_error)


@pytest.mark.parametrize("known", [True, False])
def test_both_paths_reconstruct_a_made_up_set(posed: PosedSet, known: bool) -> None:
    methods = {
        "sift": benchmark.matcher_method(Sift(320, 1500), MatchesConfig()),
        "control": benchmark.sift_method(0),
    }
    for name, method in methods.items():
        score = benchmark.run_method(posed, name, method, known)
        assert score.registered == VIEWS, name
        assert score.rotation_deg < (0.5 if known else 3), name
        assert score.centre_share < (0.02 if known else 0.1), name
        assert score.seconds > 0
    truth = [image.camera.K for image in posed.map.images]
    infos = [benchmark.read_photo(image.file).info for image in posed.map.images]
    known = benchmark.cameras_of(posed, True)(infos)
    assert [one.source for one in known] == ["given"] * VIEWS
    np.testing.assert_allclose(known[2].K, truth[2])
    assert {one.source for one in benchmark.cameras_of(posed, False)(infos)} == {"default"}


def test_poses_of_the_made_up_set_are_rigid(posed: PosedSet) -> None:
    true = np.stack([image.world_from_cam for image in posed.map.images])
    np.testing.assert_allclose(poses.inverse(true) @ true, np.tile(np.eye(4), (VIEWS, 1, 1)), atol=1e-12)
