"""Errors of cameras and depth: worked by hand; no similarity changes those of cameras, no scale those of depth."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.evaluation import metrics
from dune_cli.evaluation.metrics import camera_errors, extent, fit_cameras, pair_errors_deg
from dune_cli.geometry import poses
from dune_cli.geometry.sim3 import move_poses

NAN = float("nan")
RNG = np.random.default_rng(0)


def cameras(count: int, rng: np.random.Generator) -> np.ndarray:
    return np.stack(
        [
            poses.from_rotation_translation(poses.rotation_from_rotvec(0.5 * rng.normal(size=3)), rng.normal(size=3))
            for _ in range(count)
        ]
    )


def similarity(scale: float, rng: np.random.Generator) -> np.ndarray:
    move = cameras(1, rng)[0]
    move[:3, :3] *= scale
    return move


def turned(pose: np.ndarray, degrees: float) -> np.ndarray:
    turn = np.eye(4)
    turn[:3, :3] = poses.rotation_from_rotvec(np.array([0, 0, np.radians(degrees)]))
    return pose @ turn


@pytest.mark.parametrize("count", [2, 3, 9])
@pytest.mark.parametrize("scale", [0.01, 1.0, 40.0])
def test_similar_worlds_have_no_error_and_the_scale_is_found(count: int, scale: float) -> None:
    true = cameras(count, RNG)
    estimated = move_poses(np.linalg.inv(similarity(scale, RNG)), true)
    errors = camera_errors(true, estimated)
    np.testing.assert_allclose(errors.rotation_deg, 0, atol=1e-5)
    np.testing.assert_allclose(errors.centre, 0, atol=1e-6)
    assert errors.scale == pytest.approx(scale)


def test_cameras_in_a_row_fix_the_rotation_about_their_line() -> None:
    true = np.tile(np.eye(4), (5, 1, 1))
    true[:, 2, 3] = np.arange(5)
    fit = similarity(3.0, RNG)
    errors = camera_errors(true, move_poses(fit, true))
    np.testing.assert_allclose(errors.rotation_deg, 0, atol=1e-5)


def test_no_similarity_changes_the_errors() -> None:
    true, estimated = cameras(8, RNG), cameras(8, RNG)
    estimated[:, :3, :3] = true[:, :3, :3] @ poses.rotation_from_rotvec(0.02 * RNG.normal(size=(8, 3)))
    estimated[:, :3, 3] = true[:, :3, 3] + 0.02 * RNG.normal(size=(8, 3))
    one, two = camera_errors(true, estimated), camera_errors(true, move_poses(similarity(7.0, RNG), estimated))
    np.testing.assert_allclose(one.rotation_deg, two.rotation_deg, atol=1e-4)
    np.testing.assert_allclose(one.centre, two.centre, atol=1e-5)
    for a, b in zip(
        pair_errors_deg(true, estimated), pair_errors_deg(true, move_poses(similarity(7.0, RNG), estimated))
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_worked_by_hand() -> None:
    """Ten cameras on a line; one is turned by 30 degrees, one stands a tenth of the extent beside its place."""
    true = np.tile(np.eye(4), (10, 1, 1))
    true[:, 0, 3] = np.arange(10)
    estimated = true.copy()
    estimated[4] = turned(estimated[4], 30)
    estimated[7, 1, 3] += 0.9
    errors = camera_errors(true, estimated)
    assert errors.rotation_deg[4] == pytest.approx(30, abs=0.5)
    assert np.delete(errors.rotation_deg, 4).max() < 0.5
    assert errors.centre[7] == pytest.approx(0.9, abs=0.05)
    assert np.delete(errors.centre, 7).max() < 0.08
    assert extent(true) == 9


def test_one_camera_far_off_does_not_move_the_fit() -> None:
    true = cameras(9, RNG)
    estimated = true.copy()
    estimated[3, :3, 3] += 100
    errors = camera_errors(true, estimated)
    assert np.delete(errors.centre, 3).max() < 1e-3
    assert errors.centre[3] == pytest.approx(100 * np.sqrt(3), rel=1e-3)


def test_pairs_worked_by_hand() -> None:
    """Camera 1 found at a right angle to where it is; camera 2 not found; cameras 0 and 3 in one place."""
    true = np.tile(np.eye(4), (4, 1, 1))
    true[1, 0, 3], true[2, 1, 3] = 1, 1
    estimated = true.copy()
    estimated[1, :3, 3] = [0, 1, 0]
    estimated[2] = np.nan
    estimated[3, :3, 3] = [0, 0, 1e-9]
    rotations, directions = pair_errors_deg(true, estimated)
    np.testing.assert_allclose(rotations, [0, 180, 180, 0, 180], atol=1e-9)  # 01 02 12 13 23; 03 has no direction
    np.testing.assert_allclose(directions, [90, 180, 180, 90, 180], atol=1e-6)


def test_one_place_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="two cameras that stand apart"):
        fit_cameras(np.tile(np.eye(4), (3, 1, 1)), cameras(3, RNG))


def test_depth_errors_worked_by_hand() -> None:
    """Five measured pixels: exact, 4 % off, 20 % off, twice as far, none; a sixth was never measured."""
    true = np.array([[1.0, 2.0, 5.0], [2.0, 3.0, 0.0]])
    estimated = np.array([[1.0, 2.08, 4.0], [4.0, NAN, 7.0]])
    errors = metrics.depth_errors(estimated, true)
    assert errors.pixels == 5
    assert errors.completeness == pytest.approx(0.8)
    assert errors.abs_rel == pytest.approx((0 + 0.04 + 0.2 + 1) / 4)
    assert errors.delta == pytest.approx(2 / 4), "5 / 4 is 1.25, which is not below it"
    assert errors.close == pytest.approx(2 / 4)
    assert errors.close_of_all == pytest.approx(2 / 5)


def test_scaling_both_changes_nothing_and_scaling_one_does() -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(1, 5, (20, 30))
    estimated = true * rng.uniform(0.9, 1.1, true.shape)
    base = metrics.depth_errors(estimated, true)
    scaled = metrics.depth_errors(7 * estimated, 7 * true)
    assert scaled.abs_rel == pytest.approx(base.abs_rel)
    assert metrics.depth_errors(1.5 * true, true).abs_rel == pytest.approx(0.5)
    assert metrics.depth_errors(true, true) == metrics.DepthErrors(600, 1.0, 0.0, 1.0, 1.0, 1.0)


def test_depth_without_estimates_and_nothing_measured() -> None:
    errors = metrics.depth_errors(None, np.ones((2, 2)))
    assert (errors.completeness, errors.close_of_all) == (0, 0)
    assert np.isnan(errors.abs_rel)
    mean = metrics.mean_depth_errors([errors, metrics.depth_errors(np.full((2, 2), 1.1), np.ones((2, 2)))])
    assert (mean.completeness, mean.abs_rel) == (0.5, pytest.approx(0.1))
    with pytest.raises(ValueError, match="no pixel has a true depth"):
        metrics.depth_errors(None, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="does not go with"):
        metrics.depth_errors(np.ones((2, 3)), np.ones((2, 2)))
