"""Errors of cameras that are known up to a similarity: fitted, then per camera and per pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dune_cli.geometry.epipolar import pose_error
from dune_cli.geometry.poses import inverse, rotation_angle
from dune_cli.geometry.similarities import move_poses, robust_similarity, scale_of, similarity_from_poses

FAILED_DEG = 180.0
TOLERANCE = 0.1  # of the extent: where a camera's pull in the fit begins to fade
ROUNDS = 100
STILL = 1e-3  # of the extent: cameras that are nearer to each other stand in one place


@dataclass(frozen=True)
class CameraErrors:
    """After the fit `true_from_found` (4, 4): `rotation_deg` (N,) and `centre` (N,) in the truth's unit."""

    true_from_found: np.ndarray
    rotation_deg: np.ndarray
    centre: np.ndarray

    @property
    def scale(self) -> float:
        """By what the found lengths must be multiplied to be the true ones."""
        return float(scale_of(self.true_from_found))


def extent(world_from_cam: np.ndarray) -> float:
    """The largest distance between two cameras (N, 4, 4)."""
    centres = world_from_cam[:, :3, 3]
    return float(np.linalg.norm(centres[:, None] - centres, axis=-1).max()) if len(centres) else 0.0


def fit_cameras(true: np.ndarray, found: np.ndarray) -> np.ndarray:
    """(4, 4) `true_from_found` between poses (N, 4, 4) `world_from_cam`: a robust Umeyama fit.

    A camera is its centre and the ends of its three axes, so that cameras in a row fix all rotations, too. The axes are
    as long as the extent of the true cameras, and as long in the found world as the fit's own scale makes that, which
    is repeated until it is so: the scale comes from the centres alone. Two cameras apart are the least (ValueError).
    """
    length = extent(true)
    if not (length > 0 and extent(found) > 0):
        raise ValueError("two cameras that stand apart are needed")
    fit = similarity_from_poses(true, found)
    weights, sizes = np.ones(4 * len(true)), np.full(4 * len(true), length)
    corners = _corners(true, length)
    for _ in range(ROUNDS):
        scale = float(scale_of(fit))
        fit = robust_similarity(corners, _corners(found, length / scale), weights, sizes, TOLERANCE, start=fit).a_from_b
        if abs(float(scale_of(fit)) / scale - 1) < 1e-9:
            break
    return fit


def camera_errors(true: np.ndarray, found: np.ndarray) -> CameraErrors:
    """Of poses (N, 4, 4) `world_from_cam`, N >= 2; ValueError where no two stand apart."""
    fit = fit_cameras(true, found)
    moved = move_poses(fit, found)
    turn = rotation_angle(np.swapaxes(moved[:, :3, :3], 1, 2) @ true[:, :3, :3])
    return CameraErrors(fit, np.degrees(turn), np.linalg.norm(moved[:, :3, 3] - true[:, :3, 3], axis=1))


def pair_errors_deg(true: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and translation-direction errors in degrees of all pairs i < j of poses (N, 4, 4), which no similarity
    changes. A found pose of NaN makes its pairs 180; pairs whose true cameras stand in one place are left out."""
    rotations, directions, still = [], [], STILL * extent(true)
    for i in range(len(true)):
        for j in range(i + 1, len(true)):
            truth = inverse(true[j]) @ true[i]
            if not np.linalg.norm(truth[:3, 3]) > still:
                continue
            if not (np.isfinite(found[i]).all() and np.isfinite(found[j]).all()):
                rotations.append(FAILED_DEG)
                directions.append(FAILED_DEG)
                continue
            turn, direction = np.degrees(pose_error(inverse(found[j]) @ found[i], truth)).tolist()
            rotations.append(turn)
            directions.append(direction)
    return np.array(rotations), np.array(directions)


def _corners(world_from_cam: np.ndarray, length: float) -> np.ndarray:
    """(4 N, 3) centres and ends of the axes."""
    centres, axes = world_from_cam[:, :3, 3], np.swapaxes(world_from_cam[:, :3, :3], 1, 2)
    return np.concatenate([centres[:, None], centres[:, None] + length * axes], axis=1).reshape(-1, 3)
