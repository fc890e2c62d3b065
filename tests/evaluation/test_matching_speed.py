"""The speed of matching: three ways that agree."""

from __future__ import annotations

import pytest

from dune_cli.evaluation import matching_speed


def test_three_ways_of_matching_agree() -> None:
    result = matching_speed.measure_matching((20, 30), 24, rounds=1)
    assert result.identical
    assert 300 < result.matches < 600
    assert result.kd_tree_gain == pytest.approx(result.kd_tree_seconds / result.seconds)


def test_disagreement_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    right = matching_speed.kd_tree
    monkeypatch.setattr(matching_speed, "kd_tree", lambda a, b: tuple(part[1:] for part in right(a, b)))
    assert not matching_speed.measure_matching((10, 12), 24, rounds=1).identical
