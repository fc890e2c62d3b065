"""Scores that several benchmarks share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pose_auc(errors_deg: Sequence[float] | np.ndarray, thresholds_deg: Sequence[float] = (5, 10, 20)) -> list[float]:
    """Area under the recall curve up to each threshold, as a share of the threshold (Sarlin et al. 2020, SuperGlue).

    errors_deg (N,): the larger of a pose's rotation and translation-direction error; a failure is 180 or not finite.
    The curve goes in straight lines through (0, 0) and (i-th smallest error, i / N), and is flat from the last error
    below the threshold on; it is integrated exactly. ValueError for no errors, negative ones, or thresholds <= 0.
    """
    errors = np.nan_to_num(np.asarray(errors_deg, dtype=np.float64), nan=180, posinf=180)
    if errors.ndim != 1 or len(errors) == 0 or errors.min() < 0:
        raise ValueError(f"errors must be a list of numbers >= 0, not of shape {errors.shape}")
    if min(thresholds_deg) <= 0:
        raise ValueError(f"thresholds must be positive, not {list(thresholds_deg)}")
    errors = np.concatenate([[0.0], np.sort(errors)])
    recall = np.linspace(0, 1, len(errors))
    areas = []
    for threshold in thresholds_deg:
        below = np.searchsorted(errors, threshold)
        x = np.concatenate([errors[:below], [threshold]])
        y = np.concatenate([recall[:below], [recall[below - 1]]])
        areas.append(float(((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum() / threshold))
    return areas
