"""Which of two images' keypoints match: labels out of an exact warp, or out of a teacher's sparse correspondences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch.nn import functional as F

from dune_cli.geometry.poses import cross_matrix
from dune_cli.models.lightglue import Assignment

POSITIVE_PX = 3.0  # of the matched image, in which all distances here count
NEGATIVE_PX = 6.0  # further than this from every keypoint of the other image, a known place has no match
NEIGHBOURS = 5  # correspondences that a local affine map is fitted to
NEAR_PX = 32.0  # a keypoint's nearest correspondence
REACH_PX = 96.0  # the furthest one of the fit
EPIPOLAR_PX = 4.0


@dataclass(frozen=True)
class Labels:
    """matches (M, 2) int64: keypoints of image 0 and 1 that match, each at most once. none0 (A,), none1 (B,) int64:
    keypoints known to have no match. All others are unknown. forbidden: F (3, 3) with p1' F p0 = 0, or None."""

    matches: np.ndarray
    none0: np.ndarray
    none1: np.ndarray
    F: np.ndarray | None = None


def exact_labels(
    points0: np.ndarray, points1: np.ndarray, warped0: np.ndarray, warped1: np.ndarray, size0: tuple, size1: tuple
) -> Labels:
    """Labels under a known warp of the whole image.

    points0 (M, 2), points1 (N, 2): keypoints. warped0: where the warp takes points0 in image 1, not finite where it
    takes them nowhere; warped1 the reverse. Matches are mutually nearest and within 3 px in both images; a point that
    is out of the other image, or 6 px from all its keypoints, has none.
    """
    return _nearest(points0, points1, warped0, warped1, _inside(warped0, size1), _inside(warped1, size0))


def sparse_labels(
    points0: np.ndarray, points1: np.ndarray, known0: np.ndarray, known1: np.ndarray, F: np.ndarray | None
) -> Labels:
    """Labels near correspondences known0, known1 (K, 2) of two photos of a scene.

    Each keypoint is carried over by an affine map fitted to the five correspondences around it; where they do not
    agree (an edge in depth), none is near, or the epipolar line contradicts, nothing is known.
    """
    if len(known0) < NEIGHBOURS:
        return Labels(np.zeros((0, 2), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), F)
    warped0, warped1 = carried(points0, known0, known1), carried(points1, known1, known0)
    if F is not None:
        warped0[epipolar_distance(points0, warped0, F) > EPIPOLAR_PX] = np.nan
        warped1[epipolar_distance(points1, warped1, F.T) > EPIPOLAR_PX] = np.nan
    known = np.isfinite(warped0).all(1), np.isfinite(warped1).all(1)
    found = _nearest(points0, points1, warped0, warped1, *known)
    return Labels(
        found.matches,
        found.none0[known[0][found.none0]],
        found.none1[known[1][found.none1]],
        F,
    )


def carried(points: np.ndarray, known0: np.ndarray, known1: np.ndarray) -> np.ndarray:
    """points (N, 2) of image 0 in image 1 by local affine maps between correspondences; not finite where unknown."""
    distance, near = cKDTree(known0).query(points, k=NEIGHBOURS)
    design = np.concatenate([known0[near] - points[:, None], np.ones((*near.shape, 1))], axis=2)  # (N, K, 3)
    values = known1[near]
    normal = np.swapaxes(design, 1, 2) @ design + np.diag([1e-2, 1e-2, 1e-9])  # points on a line fix no slope
    right = np.swapaxes(design, 1, 2) @ values
    solution = np.linalg.solve(normal, right)
    residual = np.linalg.norm(design @ solution - values, axis=2).max(1)
    warped = solution[:, 2].copy()
    warped[(distance[:, 0] > NEAR_PX) | (distance[:, -1] > REACH_PX) | (residual > POSITIVE_PX)] = np.nan
    return warped


def epipolar_distance(points0: np.ndarray, points1: np.ndarray, F: np.ndarray) -> np.ndarray:
    """Distance (N,) of points1 to the epipolar lines of points0; 0 for what is not finite."""
    lines = np.concatenate([points0, np.ones((len(points0), 1))], 1) @ F.T
    values = (lines[:, :2] * np.nan_to_num(points1)).sum(1) + lines[:, 2]
    distance = np.abs(values) / np.maximum(np.linalg.norm(lines[:, :2], axis=1), 1e-12)
    return np.where(np.isfinite(points1).all(1), distance, 0.0)


def fundamental(K0: np.ndarray, K1: np.ndarray, cam1_from_cam0: np.ndarray) -> np.ndarray:
    """F of two posed frames, of norm 1."""
    E = cross_matrix(cam1_from_cam0[:3, 3]) @ cam1_from_cam0[:3, :3]
    F = np.linalg.inv(K1).T @ E @ np.linalg.inv(K0)
    return F / np.linalg.norm(F)


def _inside(points: np.ndarray, size: tuple) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return ((points > -0.5) & (points < np.array(size) - 0.5)).all(1)


def _nearest(
    points0: np.ndarray,
    points1: np.ndarray,
    warped0: np.ndarray,
    warped1: np.ndarray,
    inside0: np.ndarray,
    inside1: np.ndarray,
) -> Labels:
    """Mutual nearest neighbours; points whose warp is not `inside` count as having no match."""
    if len(points0) == 0 or len(points1) == 0:
        return Labels(np.zeros((0, 2), np.int64), np.arange(len(points0)), np.arange(len(points1)))
    to1, distance0 = _query(points1, warped0, inside0)
    to0, distance1 = _query(points0, warped1, inside1)
    row = np.arange(len(points0))
    good = (distance0 < POSITIVE_PX) & (to0[to1] == row) & (distance1[to1] < POSITIVE_PX)
    matches = np.stack([row[good], to1[good]], axis=1)
    return Labels(matches, np.flatnonzero(distance0 > NEGATIVE_PX), np.flatnonzero(distance1 > NEGATIVE_PX))


def _query(points: np.ndarray, warped: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    nearest, distance = np.zeros(len(warped), np.int64), np.full(len(warped), np.inf)
    if inside.any():
        distance[inside], nearest[inside] = cKDTree(points).query(warped[inside])
    return nearest, distance


# LightGlue's loss with matchability (Lindenberger et al. 2023, eq. 10), and that of the sub-pixel refinement.


FORBIDDEN_PX = 12.0  # further from the epipolar line than this, a pair cannot match
FORBIDDEN_WEIGHT = 0.5


def assignment_loss(
    layers: Sequence[Assignment],
    matches: torch.Tensor,
    none0: torch.Tensor,
    none1: torch.Tensor,
    far: torch.Tensor | None,
) -> torch.Tensor:
    """Negative log-likelihood of the labels, matches and unmatchable points weighing alike, averaged over all layers.

    matches (M, 2), none0 (A,), none1 (B,) int64. far (m, n) bool: pairs that the epipolar geometry forbids; the
    last layer pays for the probability that its points give them.
    """
    per_layer = [
        0.5 * _mean(-a.pairs[matches[:, 0], matches[:, 1]]) + 0.25 * (_mean(-a.none0[none0]) + _mean(-a.none1[none1]))
        for a in layers
    ]
    loss = torch.stack(per_layer).mean()
    if far is not None:
        wrong = (layers[-1].pairs.exp() * far).sum(1).clamp(max=0.999)
        loss = loss - FORBIDDEN_WEIGHT * torch.log1p(-wrong).mean()
    return loss


def refinement_loss(
    xy0: torch.Tensor, xy1: torch.Tensor, offset0: torch.Tensor, offset1: torch.Tensor, H: torch.Tensor
) -> torch.Tensor:
    """Distance in image 1, in pixels divided by the local scale, of refined points under a homography H (3, 3).

    All points are (M, 2) pixels; one match weighs as another whatever the scale between the images.
    """
    moved = F.pad(xy0 + offset0, (0, 1), value=1.0) @ H.T
    warped = moved[:, :2] / moved[:, 2:]
    scale = (H.det().abs() / moved[:, 2].abs() ** 3).sqrt().clamp(0.1, 10)
    error = (warped - xy1 - offset1) / scale.clamp(min=1.0)[:, None]
    return _mean(F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=0.25).sum(1))


def _mean(values: torch.Tensor) -> torch.Tensor:
    return values.mean() if len(values) else values.sum()
