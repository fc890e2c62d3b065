"""Poses of a trajectory that are far from where their neighbours' motion can have brought the camera."""

from __future__ import annotations

import numpy as np

from dune_cli.geometry.poses import rotation_angle

NEIGHBOURS = 2  # before a pose and after it
SPEED_FACTOR = 5.0  # times the median speed: a camera that moves so fast between two neighbours is not where it seems
SIGMAS = 5.0
MIN_TURN = np.radians(15)  # a turn below it is never too fast
MIN_POSES = 3  # fewer have no motion to compare with


def trajectory_outliers(times: np.ndarray, world_from_cam: np.ndarray, position_sd: np.ndarray) -> np.ndarray:
    """(N,) bool: the poses that are too far from more than half of their neighbours, up to two before and two after.

    `times` (N,) increase; their unit does not matter. `world_from_cam` (N, 4, 4). `position_sd` (N,): root of the
    summed variances of each position, in the world's unit. Two poses are too far apart where the distance between them
    exceeds SPEED_FACTOR times the median speed, times the time between them, and SIGMAS standard deviations of it; or
    where the angle between them exceeds SPEED_FACTOR times the median rate, and MIN_TURN. Fewer than MIN_POSES poses
    have no outliers.
    """
    count = len(times)
    if count < MIN_POSES:
        return np.zeros(count, dtype=bool)
    times = np.asarray(times, dtype=np.float64)
    centres, rotations = world_from_cam[:, :3, 3], world_from_cam[:, :3, :3]
    steps = np.diff(times)
    speed = np.median(np.linalg.norm(np.diff(centres, axis=0), axis=1) / steps)
    rate = np.median(rotation_angle(np.swapaxes(rotations[:-1], 1, 2) @ rotations[1:]) / steps)
    outliers = np.zeros(count, dtype=bool)
    for i in range(count):
        near = [j for j in range(max(i - NEIGHBOURS, 0), min(i + NEIGHBOURS + 1, count)) if j != i]
        gap = np.abs(times[near] - times[i])
        distance = np.linalg.norm(centres[near] - centres[i], axis=1)
        sd = np.hypot(position_sd[near], position_sd[i])
        angle = rotation_angle(rotations[i].T @ rotations[near])
        far = distance > np.maximum(SPEED_FACTOR * speed * gap, SIGMAS * sd)
        turned = angle > np.maximum(SPEED_FACTOR * rate * gap, MIN_TURN)
        outliers[i] = 2 * np.count_nonzero(far | turned) > len(near)
    return outliers
