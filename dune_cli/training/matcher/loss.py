"""Labels of two images' keypoints, from an exact warp or from a teacher's sparse correspondences; and the losses on
them: LightGlue's with matchability (P. Lindenberger et al., ICCV 2023, eq. 10), and the sub-pixel refinement's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch.nn import functional as F

from dune_cli.models.lightglue import Assignment

POSITIVE_PX = 3.0  # of the matched image, as all distances here
NEGATIVE_PX = 6.0  # a transferred keypoint that is further from every keypoint of the other image is unmatched
NEIGHBOURS = 5  # correspondences that a local affine map is fitted to
MAX_NEAREST_PX = 32.0  # of a keypoint to its nearest correspondence
MAX_FARTHEST_PX = 96.0  # to the farthest one of the fit
EPIPOLAR_PX = 4.0
FORBIDDEN_PX = 12.0  # from the epipolar line, beyond which two keypoints cannot match
FORBIDDEN_WEIGHT = 0.5


@dataclass(frozen=True)
class Labels:
    """matches (M, 2) int64: keypoints of image 0 and 1 that match, each at most once. unmatched0 (A,), unmatched1 (B,)
    int64: keypoints known to have no match. All others are unknown. F (3, 3) with p1' F p0 = 0, or None."""

    matches: np.ndarray
    unmatched0: np.ndarray
    unmatched1: np.ndarray
    F: np.ndarray | None = None


def exact_labels(
    points0: np.ndarray, points1: np.ndarray, warped0: np.ndarray, warped1: np.ndarray, size0: tuple, size1: tuple
) -> Labels:
    """Labels under a known warp of the whole image.

    points0 (M, 2), points1 (N, 2): keypoints. warped0: points0 warped to image 1, not finite where the warp is
    undefined; warped1 the reverse. Matches are mutual nearest neighbours within 3 px in both images. A point that is
    outside the other image, or 6 px from all its keypoints, is unmatched.
    """
    return _mutual_nearest(points0, points1, warped0, warped1, _inside(warped0, size1), _inside(warped1, size0))


def sparse_labels(
    points0: np.ndarray, points1: np.ndarray, matched0: np.ndarray, matched1: np.ndarray, F: np.ndarray | None
) -> Labels:
    """Labels near the correspondences matched0, matched1 (K, 2) of two photos of a scene.

    Each keypoint is transferred by an affine map fitted to the five correspondences around it. Its label is unknown
    where they do not fit one (a depth edge), none is near, or it is far from the epipolar line.
    """
    if len(matched0) < NEIGHBOURS:
        return Labels(np.zeros((0, 2), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), F)
    warped0, warped1 = transfer_by_affine(points0, matched0, matched1), transfer_by_affine(points1, matched1, matched0)
    if F is not None:
        warped0[epipolar_distance(points0, warped0, F) > EPIPOLAR_PX] = np.nan
        warped1[epipolar_distance(points1, warped1, F.T) > EPIPOLAR_PX] = np.nan
    known = np.isfinite(warped0).all(1), np.isfinite(warped1).all(1)
    labels = _mutual_nearest(points0, points1, warped0, warped1, *known)
    unmatched0, unmatched1 = (
        index[finite[index]] for finite, index in zip(known, (labels.unmatched0, labels.unmatched1))
    )
    return Labels(labels.matches, unmatched0, unmatched1, F)


def transfer_by_affine(points: np.ndarray, matched0: np.ndarray, matched1: np.ndarray) -> np.ndarray:
    """points (N, 2) of image 0 in image 1 by local affine maps between correspondences; not finite where unknown."""
    distance, near = cKDTree(matched0).query(points, k=NEIGHBOURS)
    design = np.concatenate([matched0[near] - points[:, None], np.ones((*near.shape, 1))], axis=2)  # (N, K, 3)
    values = matched1[near]
    normal = np.swapaxes(design, 1, 2) @ design + np.diag([1e-2, 1e-2, 1e-9])  # collinear points determine no slope
    right = np.swapaxes(design, 1, 2) @ values
    solution = np.linalg.solve(normal, right)
    residual = np.linalg.norm(design @ solution - values, axis=2).max(1)
    warped = solution[:, 2].copy()
    warped[(distance[:, 0] > MAX_NEAREST_PX) | (distance[:, -1] > MAX_FARTHEST_PX) | (residual > POSITIVE_PX)] = np.nan
    return warped


def epipolar_distance(points0: np.ndarray, points1: np.ndarray, F: np.ndarray) -> np.ndarray:
    """Distance (N,) of points1 to the epipolar lines of points0; 0 for what is not finite."""
    lines = np.concatenate([points0, np.ones((len(points0), 1))], 1) @ F.T
    values = (lines[:, :2] * np.nan_to_num(points1)).sum(1) + lines[:, 2]
    distance = np.abs(values) / np.maximum(np.linalg.norm(lines[:, :2], axis=1), 1e-12)
    return np.where(np.isfinite(points1).all(1), distance, 0.0)


def _inside(points: np.ndarray, size: tuple) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return ((points > -0.5) & (points < np.array(size) - 0.5)).all(1)


def _mutual_nearest(
    points0: np.ndarray,
    points1: np.ndarray,
    warped0: np.ndarray,
    warped1: np.ndarray,
    inside0: np.ndarray,
    inside1: np.ndarray,
) -> Labels:
    """Labels by mutual nearest neighbours; points whose warp is not `inside` are unmatched."""
    if len(points0) == 0 or len(points1) == 0:
        return Labels(np.zeros((0, 2), np.int64), np.arange(len(points0)), np.arange(len(points1)))
    nearest1, distance0 = _query(points1, warped0, inside0)
    nearest0, distance1 = _query(points0, warped1, inside1)
    index = np.arange(len(points0))
    mutual = (distance0 < POSITIVE_PX) & (nearest0[nearest1] == index) & (distance1[nearest1] < POSITIVE_PX)
    matches = np.stack([index[mutual], nearest1[mutual]], axis=1)
    return Labels(matches, np.flatnonzero(distance0 > NEGATIVE_PX), np.flatnonzero(distance1 > NEGATIVE_PX))


def _query(points: np.ndarray, warped: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    nearest, distance = np.zeros(len(warped), np.int64), np.full(len(warped), np.inf)
    if inside.any():
        distance[inside], nearest[inside] = cKDTree(points).query(warped[inside])
    return nearest, distance


def assignment_loss(
    layers: Sequence[Assignment],
    matches: torch.Tensor,
    unmatched0: torch.Tensor,
    unmatched1: torch.Tensor,
    forbidden: torch.Tensor | None,
) -> torch.Tensor:
    """Negative log-likelihood of the labels, with equal weights of matches and unmatched points, averaged over all
    layers.

    matches (M, 2), unmatched0 (A,), unmatched1 (B,) int64. forbidden (m, n) bool: pairs that contradict the epipolar
    geometry; the last layer is penalised for the probability that it gives them.
    """
    per_layer = [
        0.5 * _mean(-layer.pairs[matches[:, 0], matches[:, 1]])
        + 0.25 * (_mean(-layer.none0[unmatched0]) + _mean(-layer.none1[unmatched1]))
        for layer in layers
    ]
    loss = torch.stack(per_layer).mean()
    if forbidden is not None:
        probability = (layers[-1].pairs.exp() * forbidden).sum(1).clamp(max=0.999)
        loss = loss - FORBIDDEN_WEIGHT * torch.log1p(-probability).mean()
    return loss


def refinement_loss(
    xy0: torch.Tensor, xy1: torch.Tensor, offset0: torch.Tensor, offset1: torch.Tensor, H: torch.Tensor
) -> torch.Tensor:
    """Distance in image 1, in pixels divided by the local scale, of refined points under a homography H (3, 3).

    All points are (M, 2) pixels. The division gives matches the same weight at any scale between the images.
    """
    moved = F.pad(xy0 + offset0, (0, 1), value=1.0) @ H.T
    warped = moved[:, :2] / moved[:, 2:]
    scale = (H.det().abs() / moved[:, 2].abs() ** 3).sqrt().clamp(0.1, 10)
    error = (warped - xy1 - offset1) / scale.clamp(min=1.0)[:, None]
    return _mean(F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=0.25).sum(1))


def _mean(values: torch.Tensor) -> torch.Tensor:
    return values.mean() if len(values) else values.sum()
