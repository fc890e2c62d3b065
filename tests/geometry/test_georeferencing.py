"""Laws of the fit to measured positions: its errors are those that statistics foresee, and wrong ones are found."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.geometry import georeferencing, poses
from dune_cli.geometry.georeferencing import fit_positions
from dune_cli.geometry.sim3 import scale_of

NOISE_M = 2.0


def flight(lines: int = 5, photos: int = 12) -> np.ndarray:
    """(lines * photos, 4, 4) `world_from_cam` of a drone: east-north-up, 80 m high over 200 m x 150 m, looking down,
    its lines in turns to the east and the west."""
    found = []
    for line in range(lines):
        for photo in range(photos):
            heading = 1.0 if line % 2 == 0 else -1.0
            x = 200 * (photo / (photos - 1) if heading > 0 else 1 - photo / (photos - 1))
            y, z = 150 * line / max(lines - 1, 1), 80 + 3 * np.sin(photo + 2.0 * line)
            rotation = np.array([[0, heading, 0], [-heading, 0, 0], [0, 0, 1.0]]) @ np.diag([1.0, -1, -1])
            tilt = poses.rotation_from_rotvec(np.radians([2 * np.sin(photo), 3 * np.cos(line + photo), 0]))
            found.append(poses.from_rotation_translation(tilt @ rotation, np.array([x, y, z])))
    return np.stack(found)


def scene_from_world(seed: int = 3) -> np.ndarray:
    """(4, 4) a similarity to a scene whose axes and unit are its own."""
    rng = np.random.default_rng(seed)
    similarity = np.eye(4)
    similarity[:3, :3] = 0.03 * poses.rotation_from_rotvec(rng.normal(size=3))
    similarity[:3, 3] = rng.normal(size=3)
    return similarity


def fit(positions: np.ndarray, truth: np.ndarray, **settings):
    centres = poses.transform_points(scene_from_world(), truth)
    return fit_positions(positions, centres, np.ones_like(positions), **settings)


def test_exact_positions_give_the_similarity() -> None:
    truth = flight()[:, :3, 3]
    found = fit(truth, truth)
    np.testing.assert_allclose(found.world_from_scene, np.linalg.inv(scene_from_world()), atol=1e-6)
    assert found.agrees.all() and found.rms < 1e-8


def test_errors_fall_with_the_root_of_the_number() -> None:
    """Least squares of 7 parameters: the middle is off by sigma sqrt(3 / n), the cameras by sigma sqrt(7 / n), and the
    stated standard deviations of scale and sigma are right."""
    truth = flight()[:, :3, 3]
    middle, cameras, scales, sigmas, stated = [], [], [], [], []
    for seed in range(60):
        noise = np.random.default_rng(seed).normal(size=truth.shape) * NOISE_M
        found = fit(truth + noise, truth, seed=seed)
        off = found.residuals + noise
        middle.append((off.mean(axis=0) ** 2).sum())
        cameras.append((off**2).sum(axis=1).mean())
        scales.append(np.log(scale_of(found.world_from_scene) * 0.03))
        sigmas.append(found.sigma)
        stated.append(found.scale_sd)
    count = len(truth)
    assert np.sqrt(np.mean(middle)) == pytest.approx(NOISE_M * np.sqrt(3 / count), rel=0.2)
    assert np.sqrt(np.mean(cameras)) == pytest.approx(NOISE_M * np.sqrt(7 / count), rel=0.15)
    assert np.mean(sigmas) == pytest.approx(NOISE_M, rel=0.05)
    assert np.std(scales) == pytest.approx(np.mean(stated), rel=0.25)


@pytest.mark.parametrize("far", [40.0, 3000.0])
@pytest.mark.parametrize("share", [0.2, 0.4])
def test_wrong_positions_are_named(share: float, far: float) -> None:
    truth = flight()[:, :3, 3]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        wrong = np.zeros(len(truth), dtype=bool)
        wrong[rng.choice(len(truth), int(share * len(truth)), replace=False)] = True
        noise = rng.normal(size=truth.shape) * NOISE_M
        away = rng.normal(size=truth.shape)
        away *= far / np.linalg.norm(away, axis=1, keepdims=True)
        found = fit(truth + noise + wrong[:, None] * away, truth, seed=seed)
        assert not found.agrees[wrong].any()
        assert (~found.agrees[~wrong]).sum() <= 1  # 1 of 1,000 right ones is expected
        off = (found.residuals + noise + wrong[:, None] * away).mean(axis=0)
        assert np.linalg.norm(off) < 4 * NOISE_M * np.sqrt(3 / (~wrong).sum())


def test_the_fit_moves_and_scales_with_the_world() -> None:
    truth = flight()[:, :3, 3]
    positions = truth + np.random.default_rng(0).normal(size=truth.shape) * NOISE_M
    positions[7] += 100
    turn = poses.rotation_from_rotvec(np.array([0.3, -0.2, 1.0]))
    one, two = fit(positions, truth), fit(positions @ turn.T + 500, truth)
    np.testing.assert_allclose(two.residuals, one.residuals @ turn.T, atol=1e-7)
    np.testing.assert_array_equal(one.agrees, two.agrees)
    shuffled = np.random.default_rng(1).permutation(len(truth))
    three = fit_positions(
        positions[shuffled], poses.transform_points(scene_from_world(9), truth)[shuffled], np.ones_like(truth)
    )
    np.testing.assert_allclose(three.residuals, one.residuals[shuffled], atol=1e-6)
    assert one.agrees[7] == False and one.agrees.sum() == len(truth) - 1  # noqa: E712


def test_stated_standard_deviations_weigh() -> None:
    """Heights ten times worse than the rest: weighted, the cameras' plan is as exact as it can be."""
    truth, off = flight()[:, :3, 3], []
    sds = np.tile([1.0, 1.0, 10.0], (len(truth), 1))
    centres = poses.transform_points(scene_from_world(), truth)
    for seed in range(30):
        noise = np.random.default_rng(seed).normal(size=truth.shape) * sds
        found = fit_positions(truth + noise, centres, sds)
        assert found.agrees.sum() >= len(truth) - 1
        off.append(((found.residuals + noise)[:, :2] ** 2).sum(axis=1).mean())
    assert np.sqrt(np.mean(off)) < 1.1 * np.sqrt(4.1 / len(truth))  # two shifts, a turn and a scale


def test_a_fixed_scale_stays_and_the_free_one_is_told() -> None:
    truth = flight()[:, :3, 3]
    found = fit_positions(1.2 * truth, truth, np.ones_like(truth), with_scale=False)
    assert scale_of(found.world_from_scene) == pytest.approx(1)
    assert found.free_scale == pytest.approx(1.2)


def test_positions_in_one_place_and_on_a_line_are_told() -> None:
    truth = flight()[:, :3, 3]
    noise = np.random.default_rng(0).normal(size=truth.shape)
    assert fit(0 * truth + 3 * noise, truth).scale_sd > 0.3
    assert fit(truth + noise, truth).roll_sd < np.radians(1)
    line = truth * [1, 0, 0] + 1e-3 * noise
    found = fit(line + noise, line)
    assert found.roll_sd > np.radians(30) and found.scale_sd < 0.01
    assert abs(found.axis[0]) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("turn_deg", [20.0, 100.0, 180.0, 290.0])
def test_attitudes_tell_the_rotation_about_a_line(turn_deg: float) -> None:
    """One flight line: nadir photos, turned about the line."""
    true = flight(lines=1)
    axis, pivot = np.array([1.0, 0, 0]), true[:, :3, 3].mean(axis=0)
    turn = georeferencing._about(poses.rotation_from_rotvec(np.radians(turn_deg) * axis), pivot)
    known = true[:, :3, :3]
    back, angle = georeferencing.turned_to_orientations(turn, axis, pivot, true, known)
    np.testing.assert_allclose(back, np.eye(4), atol=1e-9)
    assert angle < 1e-6
    level = georeferencing.turned_level(turn, axis, pivot, true)
    assert level is not None
    assert np.degrees(poses.rotation_angle(level)) < 2.5  # the drone's own mean tilt


def test_photos_held_level_on_the_ground_tell_up() -> None:
    """A car that drives east and looks ahead; and one with the camera to the side, whose x axis is the line."""
    ahead = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0.0]])
    aside = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0.0]])
    for rotation, tells in ((ahead, True), (aside, False)):
        true = np.stack([poses.from_rotation_translation(rotation, np.array([x, 0, 1.5])) for x in range(5)])
        turn = georeferencing._about(poses.rotation_from_rotvec(np.array([2.0, 0, 0])), true[2, :3, 3])
        found = georeferencing.turned_level(turn, np.array([1.0, 0, 0]), true[2, :3, 3], true)
        assert (found is not None) == tells
        if found is not None:
            assert np.degrees(poses.rotation_angle(found)) < 0.5


def test_few_positions_cannot_say_which_of_them_is_wrong() -> None:
    """Three on a line fit by themselves: the fourth, beside it, is as good as they are."""
    truth = np.array([[0, 0, 80], [60, 2, 81], [95, 3, 80], [-40, 70, 79.0]])
    found = fit(truth + np.random.default_rng(0).normal(size=(4, 3)), truth)
    assert found.agrees.all() and found.roll_sd < np.radians(6)
    wrong = truth + np.outer([0, 0, 0, 1], [200, 0, 0])
    assert fit(wrong, truth).agrees.all() and fit(wrong, truth).scale_sd > 0.1


def test_what_is_known_of_the_positions_is_not_estimated_again() -> None:
    """Of five positions that an adjustment made the cameras follow: the scale is as uncertain as they are."""
    truth = flight()[:5, :3, 3]
    agrees = np.array([True, True, False, True, True])
    positions = truth.copy()
    positions[2] += 40
    found = fit(positions, truth, agrees=agrees, sigma=0.2)
    extent = np.sqrt(((truth[agrees] - truth[agrees].mean(axis=0)) ** 2).sum())
    assert found.sigma == 0.2 and found.agrees is agrees
    assert found.scale_sd == pytest.approx(1.0 / extent)  # so few do not tell that they are better than stated
    np.testing.assert_allclose(found.world_from_scene, np.linalg.inv(scene_from_world()), atol=1e-6)


def test_of_five_one_that_is_far_off_is_found_and_one_that_is_not_is_not() -> None:
    truth = flight()[::13, :3, 3]
    assert len(truth) == 5
    named = 0
    bent = truth.copy()
    bent[2, 2] += 0.5
    assert fit(bent, truth, tolerance=1.0).agrees.all() and not fit(bent, truth).agrees[2]
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(size=truth.shape)
        assert fit(truth + noise, truth, seed=seed).agrees.all()
        wrong = truth + noise
        wrong[3] += [0, 300, 0]
        named += np.array_equal(np.flatnonzero(~fit(wrong, truth, seed=seed).agrees), [3])
    assert named > 190
