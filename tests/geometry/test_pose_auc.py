"""Area under the recall curve by hand, and its laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dune_cli.geometry.epipolar import pose_auc

errors = st.lists(st.floats(0, 180), min_size=1, max_size=30)


def test_perfect_poses_score_one_and_failures_nothing() -> None:
    assert pose_auc([0, 0, 0]) == pytest.approx([1, 1, 1])
    assert pose_auc([180, np.nan, np.inf]) == [0, 0, 0]


def test_one_error_by_hand() -> None:
    """Recall rises in a line from 0 at 0 to 1 at 4, then stays: area (2 + 6) of 10; at 2 the curve is still at 0."""
    assert pose_auc([4], [10, 2, 4]) == pytest.approx([0.8, 0, 0])


def test_several_errors_by_hand() -> None:
    """Through (0, 0), (1, 1/4), (3, 1/2), flat to 5: 1/8 + 3/4 + 1 over 5; the failures never count."""
    assert pose_auc([3, 1, 180, 20], [5]) == pytest.approx([(0.125 + 0.75 + 1.0) / 5])


def test_order_does_not_matter() -> None:
    assert pose_auc([9, 1, 4]) == pose_auc([1, 4, 9])


@given(errors=errors, better=st.floats(0, 1))
def test_bounded_rising_in_the_errors(errors: list[float], better: float) -> None:
    area = pose_auc(errors)
    assert all(0 <= value <= 1 for value in area)
    improved = pose_auc([error * better for error in errors])
    assert all(after >= before - 1e-12 for before, after in zip(area, improved))


@pytest.mark.parametrize(("errors", "thresholds"), [([], [5]), ([-1.0], [5]), ([[1.0]], [5]), ([1.0], [0])])
def test_nonsense_is_refused(errors: list, thresholds: list) -> None:
    with pytest.raises(ValueError, match="must be"):
        pose_auc(errors, thresholds)
