"""The speed of matching: three ways that agree."""

from __future__ import annotations

import pytest

from dune_cli.evaluation import matching_speed


def test_three_ways_of_matching_agree() -> None:
    found = matching_speed.measure_matching((20, 30), 24, rounds=1)
    assert found.identical
    assert 300 < found.matches < 600
    assert found.kd_tree_gain == pytest.approx(found.kd_tree_seconds / found.seconds)


def test_disagreement_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    right = matching_speed.kd_tree
    monkeypatch.setattr(matching_speed, "kd_tree", lambda a, b: tuple(part[1:] for part in right(a, b)))
    assert not matching_speed.measure_matching((10, 12), 24, rounds=1).identical
