"""Positions and rotations over time, smoothed forwards and backwards: no lag.

A constant-velocity Kalman filter with the Rauch-Tung-Striebel smoother (Rauch, Tung, Striebel, "Maximum likelihood
estimates of linear dynamic systems", AIAA Journal 3(8), 1965; Särkkä, "Bayesian Filtering and Smoothing", 2013,
section 8.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dune_cli.geometry.poses import rotation_from_rotvec, rotvec_from_rotation


@dataclass(frozen=True)
class KalmanSmootherConfig:
    """deviation: of a measured value. acceleration: deviation of the acceleration, constant between two measurements,
    in the value's unit / s²; larger values follow fast motion and smooth less. speed: deviation of the first velocity.
    """

    deviation: float
    acceleration: float
    speed: float

    def __post_init__(self) -> None:
        if not all(np.isfinite(value) and value > 0 for value in vars(self).values()):
            raise ValueError(f"deviations must be positive: {self}")


def smooth_values(times_s: np.ndarray, values: np.ndarray, config: KalmanSmootherConfig) -> np.ndarray:
    """(T, ...) smoothed `values` (T, ...) at times (T,) that grow; each number is a series of its own.

    All series have the same covariances and gains, so that these are computed once. ValueError for other shapes.
    """
    times_s, values = np.asarray(times_s, np.float64), np.asarray(values, np.float64)
    if times_s.ndim != 1 or values.shape[:1] != times_s.shape or (np.diff(times_s) <= 0).any():
        raise ValueError(f"times must grow, one for each value: {times_s.shape} and {values.shape}")
    if len(times_s) < 3:
        return values.copy()
    series = values.reshape(len(values), -1)
    state = np.stack([series[0], np.zeros_like(series[0])])  # (2, N): value and velocity
    covariance = np.diag([config.deviation**2, config.speed**2])
    filtered, predicted, transitions = [(state, covariance)], [], []
    for step_s, measured in zip(np.diff(times_s), series[1:]):
        F = np.array([[1, step_s], [0, 1]])
        g = np.array([step_s**2 / 2, step_s])
        state, covariance = F @ state, F @ covariance @ F.T + config.acceleration**2 * np.outer(g, g)
        predicted.append((state, covariance))
        transitions.append(F)
        gain = covariance[:, 0] / (covariance[0, 0] + config.deviation**2)
        state = state + gain[:, None] * (measured - state[0])
        covariance = covariance - np.outer(gain, covariance[0])
        filtered.append((state, covariance))
    smoothed = [filtered[-1][0]]
    for (state, covariance), (ahead, spread), F in zip(filtered[-2::-1], predicted[::-1], transitions[::-1]):
        gain = covariance @ F.T @ np.linalg.inv(spread)
        smoothed.append(state + gain @ (smoothed[-1] - ahead))
    return np.stack(smoothed[::-1])[:, 0].reshape(values.shape)


def smooth_rotations(times_s: np.ndarray, rotations: np.ndarray, config: KalmanSmootherConfig) -> np.ndarray:
    """(T, ..., 3, 3) smoothed rotations (T, ..., 3, 3) at times (T,) that grow; deviations in radians.

    The turns from each rotation to the next, as rotation vectors, are summed to a curve in the tangent space, which
    also holds several whole turns. The curve is smoothed, and each rotation is turned by what that changed at its time,
    R exp(smoothed - curve). Exact to first order in the turns between neighbours.
    """
    rotations = np.asarray(rotations, np.float64)
    turns = rotvec_from_rotation(np.swapaxes(rotations[:-1], -1, -2) @ rotations[1:])
    curve = np.concatenate([np.zeros_like(turns[:1]), np.cumsum(turns, axis=0)]) if len(turns) else None
    if curve is None:
        return rotations.copy()
    return rotations @ rotation_from_rotvec(smooth_values(times_s, curve, config) - curve)
