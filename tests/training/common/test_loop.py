"""The learning rate over a run."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.training.common.loop import learning_rate
from dune_cli.training.distill.teacher_norm import (
    norm_momentum,
)


def test_schedules_have_the_published_shape() -> None:
    steps = 1000
    rates = [learning_rate(step, steps, 3e-4) for step in range(steps)]
    assert rates[0] == 0 and max(rates) == rates[200] == pytest.approx(3e-4) and rates[-1] == pytest.approx(1e-6)
    assert np.allclose(np.diff(rates[:200]), 3e-4 / 200)
    assert all(np.diff(rates[200:]) <= 0)
    assert rates[200 + 400] == pytest.approx((3e-4 + 1e-6) / 2, rel=0.01)  # half way down the cosine
    momenta = [norm_momentum(step, steps) for step in range(steps)]
    assert momenta[0] == 1 and momenta[-1] == pytest.approx(1e-3) and all(np.diff(momenta) < 0)
    assert learning_rate(0, 1, 3e-4) == pytest.approx(3e-4) and norm_momentum(0, 1) == 1


def test_schedules() -> None:
    assert learning_rate(0, 100, 1.0) == 0
    assert learning_rate(10, 100, 1.0) == pytest.approx(0.5)
    assert learning_rate(20, 100, 1.0) == pytest.approx(1.0)
    assert learning_rate(99, 100, 1.0) == pytest.approx(1e-6)
    assert norm_momentum(0, 10) == 1
    assert norm_momentum(9, 10) == pytest.approx(1e-3)
