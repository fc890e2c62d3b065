"""Who is who from frame to frame: identities by the places of points in metres, such as people's heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TIME_SLACK_S = 1e-6


@dataclass(frozen=True)
class PersonTrackerConfig:
    """`gap_s`: how long somebody may be unseen and keep the identity. A point may be `slack_m` + `speed_m_s` · (the
    seconds unseen) from where its track was heading: 6 m/s is faster than most people run, and half a metre is what
    the distance of one photo's person is uncertain by. `memory_s`: the time constant of a track's velocity."""

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

    def at(self, time_s: float) -> np.ndarray:
        return self.position + self.velocity * (time_s - self.time_s)


class PersonTracker:
    """Gives points the identities of those of earlier frames; the camera is taken to stand still or move slowly."""

    def __init__(self, config: PersonTrackerConfig | None = None) -> None:
        self.config = config or PersonTrackerConfig()
        self._tracks: list[_Track] = []
        self._next, self._time_s = 0, -np.inf

    def update(self, time_s: float, positions: np.ndarray) -> list[int]:
        """positions (P, 3) in metres at `time_s` -> P identities, 0 for the first; their order in the frame is no
        matter.

        Tracks, each continued at constant velocity, and positions are paired so that the sum of distance/gate - 1 over
        the pairs is least (Hungarian method; no pair is farther apart than its gate). Who is left gets a new
        identity, the nearest to the origin first. ValueError for other shapes, positions that are not finite, and
        times that do not grow.
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
        continued = self._pairs(alive, time_s, sorted_positions)
        lost = [track for track in alive if track not in continued.values()]
        ids, seen = np.zeros(len(positions), int), []
        for place, position in enumerate(sorted_positions):
            track = continued.get(place)
            seen.append(self._started(time_s, position) if track is None else self._moved(track, time_s, position))
            ids[order[place]] = seen[-1].id
        self._tracks = lost + seen
        return ids.tolist()

    def _pairs(self, tracks: Sequence[_Track], time_s: float, positions: np.ndarray) -> dict[int, _Track]:
        """Index of a position -> the track that it continues."""
        if not tracks or not len(positions):
            return {}
        from scipy.optimize import linear_sum_assignment

        expected = np.array([track.at(time_s) for track in tracks])
        unseen_s = np.array([time_s - track.time_s for track in tracks])
        gates = self.config.slack_m + self.config.speed_m_s * unseen_s
        distances = np.linalg.norm(expected[:, None] - positions, axis=-1)
        gain = np.minimum(distances / gates[:, None] - 1, 0)  # what is beyond a gate pairs as well as nothing
        rows, columns = linear_sum_assignment(gain)
        return {int(column): tracks[row] for row, column in zip(rows, columns) if gain[row, column] < 0}

    def _started(self, time_s: float, position: np.ndarray) -> _Track:
        self._next += 1
        return _Track(self._next - 1, time_s, position, np.zeros(3))

    def _moved(self, track: _Track, time_s: float, position: np.ndarray) -> _Track:
        elapsed = time_s - track.time_s
        velocity = (position - track.position) / elapsed
        velocity *= min(1.0, self.config.speed_m_s / max(float(np.linalg.norm(velocity)), 1e-9))
        share = -np.expm1(-elapsed / self.config.memory_s)
        return _Track(track.id, time_s, position, track.velocity + share * (velocity - track.velocity))
