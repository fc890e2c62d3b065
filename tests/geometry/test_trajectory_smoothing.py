"""Smoothing of positions and rotations over time, by laws."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.geometry.poses import (
    continuous_quaternions,
    rotation_angle,
    rotation_from_quaternion,
    rotation_from_rotvec,
)
from dune_cli.geometry.trajectory_smoothing import KalmanSmootherConfig, smooth_rotations, smooth_values

CONFIG = KalmanSmootherConfig(deviation=0.1, acceleration=2.0, speed=5.0)
RNG = np.random.default_rng(0)
TIMES = np.cumsum(RNG.uniform(0.02, 0.06, 80))


def test_noise_shrinks_without_lag() -> None:
    truth = np.stack([np.sin(TIMES), TIMES], 1)
    noisy = truth + RNG.normal(size=truth.shape) * 0.1
    smoothed = smooth_values(TIMES, noisy, CONFIG)
    assert np.std(smoothed - truth) < 0.5 * np.std(noisy - truth)
    shifts = np.arange(-5, 6)
    errors = [np.abs(np.roll(smoothed[:, 0], shift) - truth[:, 0])[8:-8].mean() for shift in shifts]
    assert abs(shifts[np.argmin(errors)]) <= 1


def test_it_is_the_least_squares_trajectory() -> None:
    """The smoother is the maximum a posteriori of its model, which dense linear algebra gives too."""
    times, values = TIMES[:6], RNG.normal(size=6)
    count = len(times)
    mean, covariance = np.zeros(2 * count), np.zeros((2 * count, 2 * count))
    mean[0] = values[0]
    covariance[:2, :2] = np.diag([CONFIG.deviation**2, CONFIG.speed**2])
    for k, step in enumerate(np.diff(times)):
        F, g = np.array([[1, step], [0, 1]]), np.array([step**2 / 2, step])
        now, then = slice(2 * k, 2 * k + 2), slice(2 * k + 2, 2 * k + 4)
        mean[then] = F @ mean[now]
        covariance[then, : 2 * k + 2] = F @ covariance[now, : 2 * k + 2]
        covariance[: 2 * k + 2, then] = covariance[then, : 2 * k + 2].T
        covariance[then, then] = F @ covariance[now, now] @ F.T + CONFIG.acceleration**2 * np.outer(g, g)
    H = np.zeros((count - 1, 2 * count))
    H[np.arange(count - 1), 2 * np.arange(1, count)] = 1
    gain = covariance @ H.T @ np.linalg.inv(H @ covariance @ H.T + CONFIG.deviation**2 * np.eye(count - 1))
    assert smooth_values(times, values, CONFIG) == pytest.approx((mean + gain @ (values[1:] - H @ mean))[::2], abs=1e-9)


def test_a_steady_turn_stays_and_the_frame_does_not_matter() -> None:
    steady = rotation_from_rotvec(np.stack([0 * TIMES, 4 * (TIMES - TIMES[0]), 0 * TIMES], 1))  # two whole turns
    config = KalmanSmootherConfig(deviation=0.1, acceleration=2.0, speed=100.0)
    assert rotation_angle(np.swapaxes(steady, 1, 2) @ smooth_rotations(TIMES, steady, config)).max() < 0.01
    noisy = steady @ rotation_from_rotvec(RNG.normal(size=(80, 3)) * 0.1)
    smoothed = smooth_rotations(TIMES, noisy, CONFIG)
    assert rotation_angle(np.swapaxes(steady, 1, 2) @ smoothed).mean() < 0.6 * 0.16
    frame = rotation_from_rotvec(np.array([0.3, -1, 2.0]))
    assert smooth_rotations(TIMES, frame @ noisy, CONFIG) == pytest.approx(frame @ smoothed, abs=1e-9)


def test_short_series_stay() -> None:
    values = np.array([[1.0], [2.0]])
    assert (smooth_values(np.array([0, 1.0]), values, CONFIG) == values).all()
    assert smooth_rotations(np.array([0.0]), np.eye(3)[None], CONFIG) == pytest.approx(np.eye(3)[None])


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="times must grow"):
        smooth_values(np.array([0, 0, 1.0]), np.zeros(3), CONFIG)
    with pytest.raises(ValueError, match="must be positive"):
        KalmanSmootherConfig(deviation=0.0, acceleration=1.0, speed=1.0)


def test_quaternions_do_not_jump() -> None:
    rotations = rotation_from_rotvec(np.stack([0 * TIMES, 7 * TIMES, 0.1 * TIMES], 1))[:, None]
    quaternions = continuous_quaternions(rotations)
    assert ((quaternions[1:] * quaternions[:-1]).sum(-1) > 0.9).all() and (quaternions[..., 0] < 0).any()
    assert rotation_from_quaternion(quaternions) == pytest.approx(rotations, abs=1e-12)
