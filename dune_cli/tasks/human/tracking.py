"""Tracking of people from frame to frame by the positions of their heads in metres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TIME_SLACK_S = 1e-6


@dataclass(frozen=True)
class PersonTrackerConfig:
    """gap_s: the longest time without a detection before a track ends. speed_m_s, slack_m: a detection may be
    `slack_m` + `speed_m_s` · (seconds since the last one) from the track's predicted position; 6 m/s is faster than
    most people run, and half a metre is the uncertainty of a person's distance. memory_s: the time constant of a
    track's velocity."""

    gap_s: float = 1.0
    speed_m_s: float = 6.0
    slack_m: float = 0.5
    memory_s: float = 0.3


@dataclass(frozen=True)
class _Track:
    id: int
    time_s: float
    position: np.ndarray
    velocity: np.ndarray

    def predict(self, time_s: float) -> np.ndarray:
        """The position (3,) at constant velocity."""
        return self.position + self.velocity * (time_s - self.time_s)


class PersonTracker:
    """Assigns track ids to the people of successive frames. The camera is assumed to stand still or move slowly."""

    def __init__(self, config: PersonTrackerConfig | None = None) -> None:
        self.config = config or PersonTrackerConfig()
        self._tracks: list[_Track] = []
        self._next, self._time_s = 0, -np.inf

    def update(self, time_s: float, positions: np.ndarray) -> list[int]:
        """positions (P, 3) in metres at `time_s` -> P track ids from 0, independent of the order of the positions.

        Tracks, predicted at constant velocity, and positions are paired so that the sum of distance / gate - 1 is
        minimal (Hungarian method); no pair exceeds its gate. Positions without a track start new ones, the nearest to
        the origin first. ValueError for other shapes, positions that are not finite, and times that do not grow.
        """
        positions = np.asarray(positions, np.float64)
        if positions.shape == (0,):
            positions = positions.reshape(0, 3)
        if positions.ndim != 2 or positions.shape[1] != 3 or not np.isfinite(positions).all():
            raise ValueError(f"positions must be finite (P, 3), received {positions.shape}")
        if not time_s > self._time_s:
            raise ValueError(f"times must grow: {time_s} s after {self._time_s} s")
        self._time_s = time_s
        config = self.config
        alive = [track for track in self._tracks if time_s - track.time_s <= config.gap_s + TIME_SLACK_S]
        order = np.lexsort((*positions.T, np.linalg.norm(positions, axis=1)))
        sorted_positions = positions[order]
        matched = self._match(alive, time_s, sorted_positions)
        unmatched = [track for track in alive if track not in matched.values()]
        ids, updated = np.zeros(len(positions), int), []
        for index, position in enumerate(sorted_positions):
            track = matched.get(index)
            updated.append(self._start(time_s, position) if track is None else self._update(track, time_s, position))
            ids[order[index]] = updated[-1].id
        self._tracks = unmatched + updated
        return ids.tolist()

    def _match(self, tracks: Sequence[_Track], time_s: float, positions: np.ndarray) -> dict[int, _Track]:
        """Index of a position -> its track."""
        if not tracks or not len(positions):
            return {}
        from scipy.optimize import linear_sum_assignment

        predicted = np.array([track.predict(time_s) for track in tracks])
        elapsed_s = np.array([time_s - track.time_s for track in tracks])
        gates = self.config.slack_m + self.config.speed_m_s * elapsed_s
        distances = np.linalg.norm(predicted[:, None] - positions, axis=-1)
        cost = np.minimum(distances / gates[:, None] - 1, 0)  # beyond the gate as costly as no pair
        rows, columns = linear_sum_assignment(cost)
        return {int(column): tracks[row] for row, column in zip(rows, columns) if cost[row, column] < 0}

    def _start(self, time_s: float, position: np.ndarray) -> _Track:
        self._next += 1
        return _Track(self._next - 1, time_s, position, np.zeros(3))

    def _update(self, track: _Track, time_s: float, position: np.ndarray) -> _Track:
        elapsed = time_s - track.time_s
        velocity = (position - track.position) / elapsed
        velocity *= min(1.0, self.config.speed_m_s / max(float(np.linalg.norm(velocity)), 1e-9))
        share = -np.expm1(-elapsed / self.config.memory_s)
        return _Track(track.id, time_s, position, track.velocity + share * (velocity - track.velocity))
