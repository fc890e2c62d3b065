"""Identities: crossing people, gaps, order, gates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dune_cli.tasks.human.tracking import PersonTracker, PersonTrackerConfig


def walk(start: tuple, speed: tuple, times: np.ndarray) -> np.ndarray:
    return np.array(start, float) + np.array(speed, float) * times[:, None]


def follow(times: np.ndarray, people: list[np.ndarray], config: PersonTrackerConfig | None = None) -> list[list[int]]:
    tracker = PersonTracker(config)
    return [tracker.update(time, np.array([track[k] for track in people])) for k, time in enumerate(times)]


@pytest.mark.parametrize("rate", [30, 10, 5])
@pytest.mark.parametrize("apart", [0.15, 0.6])
def test_people_who_cross_keep_their_identities(rate: int, apart: float) -> None:
    times = np.arange(4 * rate) / rate
    people = [walk((-3, 0, 5), (1.5, 0, 0), times), walk((3, 0, 5 + apart), (-1.5, 0, 0), times)]
    rng = np.random.default_rng(0)
    people = [track + rng.normal(0, 0.02, track.shape) for track in people]
    assert follow(times, people) == [[0, 1]] * len(times)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_detections_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = PersonTracker(), PersonTracker()
    for k in range(12):
        positions = rng.uniform(-2, 2, (rng.integers(0, 6), 3))
        order = rng.permutation(len(positions))
        ids, mixed = one.update(k / 7, positions), other.update(k / 7, positions[order])
        assert mixed == [ids[place] for place in order]
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("unseen_s", "same"), [(0.3, True), (0.9, True), (1.0, True), (1.1, False), (30, False)])
def test_a_gap_of_up_to_a_second(unseen_s: float, same: bool) -> None:
    tracker, times = PersonTracker(), np.arange(20) / 10
    for time in times:
        assert tracker.update(time, walk((0, 0, 4), (1, 0, 0), times)[[int(time * 10 + 0.5)]]) == [0]
    back = times[-1] + unseen_s
    for time in np.arange(times[-1] + 0.1, back - 1e-9, 0.1)[:9]:
        assert tracker.update(time, np.zeros((0, 3))) == []
    assert tracker.update(back, np.array([[back, 0, 4]])) == ([0] if same else [1])


def test_somebody_seen_is_not_taken_by_somebody_lost() -> None:
    tracker = PersonTracker()
    assert tracker.update(0.0, np.array([[0, 0, 4], [1.0, 0, 4.1]])) == [0, 1]
    for k in range(1, 9):
        assert tracker.update(k / 10, np.array([[1.0, 0, 4.1]])) == [1]
    assert tracker.update(0.9, np.array([[1.05, 0, 4.1]])) == [1]
    assert tracker.update(1.0, np.array([[1.05, 0, 4.1], [0.1, 0, 4]])) == [1, 0]


def test_nobody_jumps_farther_than_the_gate() -> None:
    config = PersonTrackerConfig(speed_m_s=4, slack_m=0.2)
    for distance, identity in ((0.59, 0), (0.61, 1)):
        tracker = PersonTracker(config)
        tracker.update(0, np.array([[0, 0, 5.0]]))
        assert tracker.update(0.1, np.array([[distance, 0, 5.0]])) == [identity]


def test_a_newcomer_does_not_shift_everybody() -> None:
    """Three in a row, half a metre apart; one leaves at one end while another comes at the other."""
    tracker = PersonTracker()
    row = np.array([[0.5 * k, 0, 4.0] for k in range(4)])
    assert sorted(tracker.update(0, row[:3])) == [0, 1, 2]
    before = tracker.update(0.1, row[:3])
    after = tracker.update(0.2, row[1:])
    assert after[:2] == before[1:]
    assert after[2] == 3


def test_identities_begin_with_the_nearest_and_are_never_given_twice() -> None:
    tracker = PersonTracker()
    assert tracker.update(0, np.array([[0, 0, 9.0], [0, 0, 3.0]])) == [1, 0]
    assert tracker.update(5, np.array([[0, 0, 9.0], [0, 0, 3.0]])) == [3, 2]


def test_what_cannot_be_tracked() -> None:
    tracker = PersonTracker()
    assert tracker.update(1, []) == []
    for time, positions in ((1, []), (0.5, []), (2, [[0, 1]]), (2, [[0, 0, np.nan]]), (2, np.zeros((1, 1, 3)))):
        with pytest.raises(ValueError, match=r"times must grow|must be finite \(P, 3\)"):
            tracker.update(time, np.array(positions, float))
