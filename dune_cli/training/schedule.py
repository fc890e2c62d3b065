"""Schedules over a run: learning rate and teacher-norm momentum. Source: the released models' recipe."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, peak: float, final: float = 1e-6, warmup_fraction: float = 0.2) -> float:
    """Linear from 0 over the first `warmup_fraction` of the steps, then a cosine from `peak` to `final`."""
    warmup = int(warmup_fraction * steps)
    if step < warmup:
        return peak * step / warmup
    return _cosine(peak, final, step - warmup, steps - warmup)


def norm_momentum(step: int, steps: int) -> float:
    """Momentum of the teacher norms: a cosine from 1.0 to 0.001 over all steps, without warm-up."""
    return _cosine(1.0, 1e-3, step, steps)


def _cosine(start: float, end: float, step: int, steps: int) -> float:
    progress = min(step / max(steps - 1, 1), 1.0)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))
