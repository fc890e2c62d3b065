"""Scores of depth maps, class maps and classes, in float64. Per photo; a set's score is the mean over its photos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Alignment = Literal["raw", "median", "affine"]
ALIGNMENTS: tuple[Alignment, ...] = ("raw", "median", "affine")
RATIO = 1.25
NEAREST_M = 0.01
EDGE_RATIO = 1.1  # of the depths on both sides
EDGE_REACH_PX = 2


@dataclass(frozen=True)
class DepthScore:
    """abs_rel: mean of |p - g| / g. rmse: in metres. delta1: share of ratios below 1.25. si_log: standard deviation of
    log p - log g, times 100 (D. Eigen et al., NIPS 2014, equation 2, its root)."""

    abs_rel: float
    rmse: float
    delta1: float
    si_log: float


def align(predicted: np.ndarray, true: np.ndarray, alignment: Alignment) -> np.ndarray:
    """Predicted depth (N) after what `alignment` allows: nothing, one scale (medians agree), or scale and shift.

    "affine" is the least-squares fit of the relative error; a constant prediction gets the best constant.
    """
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if alignment == "raw":
        return predicted
    if alignment == "median":
        return predicted * (np.median(true) / max(float(np.median(predicted)), 1e-9))
    columns = np.stack([np.ones_like(predicted), predicted], 1)
    if predicted.std() < 1e-9 * max(abs(float(predicted.mean())), 1e-9):
        columns = columns[:, :1]
    solution = np.linalg.lstsq(columns / true[:, None], np.ones(len(true)), rcond=None)[0]
    return columns @ solution


def depth_score(predicted: np.ndarray, true: np.ndarray, alignment: Alignment = "raw") -> DepthScore:
    """The score of predicted depth at pixels (N) whose true depth is above 0. ValueError for none and other shapes."""
    true = np.asarray(true, np.float64)
    if true.ndim != 1 or not len(true) or np.shape(predicted) != true.shape or not (true > 0).all():
        raise ValueError(f"pixels (N) with a true depth are needed; received {np.shape(predicted)} and {true.shape}")
    found = np.maximum(align(predicted, true, alignment), NEAREST_M)
    logs = np.log(found) - np.log(true)
    return DepthScore(
        float(np.mean(np.abs(found - true) / true)),
        float(np.sqrt(np.mean((found - true) ** 2))),
        float(np.mean(np.maximum(found / true, true / found) < RATIO)),
        float(100 * logs.std()),
    )


def disparity_correlation(predicted: np.ndarray, disparity: np.ndarray) -> float:
    """Pearson's correlation of 1 / predicted depth and true disparity (N); 0 for a constant prediction."""
    inverse = 1 / np.maximum(np.asarray(predicted, np.float64), NEAREST_M)
    if inverse.std() < 1e-12 or np.std(disparity) < 1e-12:
        return 0.0
    return float(np.corrcoef(inverse, np.asarray(disparity, np.float64))[0, 1])


def depth_edges(depth: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels whose right or lower neighbour's depth differs by a tenth or more; none where depth is 0."""
    known = depth > 0
    logs = np.log(np.where(known, depth, 1.0))
    edges = np.zeros(depth.shape, bool)
    for axis in (0, 1):
        first = tuple(slice(None, -1) if a == axis else slice(None) for a in (0, 1))
        second = tuple(slice(1, None) if a == axis else slice(None) for a in (0, 1))
        jump = np.abs(logs[second] - logs[first]) > np.log(EDGE_RATIO)
        edges[first] |= jump & known[first] & known[second]
    return edges


def edge_recall(predicted: np.ndarray, true: np.ndarray) -> float:
    """The share of true depth edges (H, W) with a predicted edge within 2 px; NaN without true edges.

    The predicted edges are the strongest jumps, as many as there are true ones: a noisy map gains nothing.
    """
    from scipy.ndimage import distance_transform_edt

    edges = depth_edges(true)
    count = int(edges.sum())
    if not count:
        return float("nan")
    logs = np.log(np.maximum(predicted, NEAREST_M))
    jumps = np.zeros(true.shape)
    jumps[:-1] = np.abs(np.diff(logs, axis=0))
    jumps[:, :-1] = np.maximum(jumps[:, :-1], np.abs(np.diff(logs, axis=1)))
    known = true > 0
    jumps[~known] = 0
    if not jumps.any():
        return 0.0
    least = np.partition(jumps.ravel(), -count)[-count]
    found = jumps >= max(least, 1e-9)
    distance = distance_transform_edt(~found)
    return float((distance[edges] <= EDGE_REACH_PX).mean())


def confusion(predicted: np.ndarray, true: np.ndarray, classes: int, ignored: int = 255) -> np.ndarray:
    """(classes, classes) int64: pixels by true class (rows) and predicted class (columns)."""
    known = true != ignored
    index = true[known].astype(np.int64) * classes + predicted[known].astype(np.int64)
    return np.bincount(index, minlength=classes * classes).reshape(classes, classes)


def class_iou(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each class (C), NaN for one that neither side has."""
    both = np.diag(matrix).astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - both
    return np.where(union > 0, both / np.maximum(union, 1), np.nan)


def mean_iou(matrix: np.ndarray) -> float:
    """Mean over the classes that the truth has."""
    present = matrix.sum(1) > 0
    return float(np.nanmean(class_iou(matrix)[present])) if present.any() else float("nan")
