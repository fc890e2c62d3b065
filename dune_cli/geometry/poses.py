"""Rigid poses as 4x4 matrices named `a_from_b`, rotations and quaternions. numpy, float64, any leading dimensions.

Quaternions are (w, x, y, z). Formulas: R. Hartley and A. Zisserman, "Multiple View Geometry", appendix 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def from_rotation_translation(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """(..., 4, 4) poses from rotations (..., 3, 3) and translations (..., 3)."""
    rotation, translation = np.asarray(rotation, dtype=np.float64), np.asarray(translation, dtype=np.float64)
    batch = np.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])
    pose = np.zeros((*batch, 4, 4))
    pose[..., :3, :3] = rotation
    pose[..., :3, 3] = translation
    pose[..., 3, 3] = 1.0
    return pose


def inverse(a_from_b: np.ndarray) -> np.ndarray:
    """(..., 4, 4) `b_from_a`; exact for rigid poses, without a matrix inversion."""
    a_from_b = np.asarray(a_from_b, dtype=np.float64)
    transposed = np.swapaxes(a_from_b[..., :3, :3], -1, -2)
    return from_rotation_translation(transposed, -(transposed @ a_from_b[..., :3, 3:])[..., 0])


def compose(*poses: np.ndarray) -> np.ndarray:
    """(..., 4, 4) product of poses (..., 4, 4) from left to right: compose(a_from_b, b_from_c) is a_from_c."""
    product = np.eye(4)
    for pose in poses:
        product = product @ np.asarray(pose, dtype=np.float64)
    return product


def transform_points(a_from_b: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (..., 3) of frame b in frame a. One pose (4, 4) goes with any shape, poses (B, 4, 4) with (B, N, 3)."""
    a_from_b, points = np.asarray(a_from_b, dtype=np.float64), np.asarray(points, dtype=np.float64)
    rotation, translation = np.swapaxes(a_from_b[..., :3, :3], -1, -2), a_from_b[..., None, :3, 3]
    if points.ndim == 1:
        return (points[None] @ rotation + translation)[..., 0, :]
    return points @ rotation + translation


def rotation_angle(rotation: np.ndarray) -> np.ndarray:
    """(...) angle in [0, pi] of rotations (..., 3, 3), or of poses (..., 4, 4).

    From sine and cosine together, so that it keeps its digits near 0 and near pi, where arccos of the trace loses half.
    """
    rotation = np.asarray(rotation, dtype=np.float64)
    skew = rotation - np.swapaxes(rotation, -1, -2)
    sine = np.linalg.norm(np.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], axis=-1) / 2, axis=-1)
    cosine = (np.trace(rotation[..., :3, :3], axis1=-2, axis2=-1) - 1) / 2
    return np.arctan2(sine, cosine)


def vector_angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(...) angle in [0, pi] between vectors (..., 3), well conditioned everywhere; 0 where one is zero."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1))


def quaternion_from_rotation(rotation: np.ndarray) -> np.ndarray:
    """(..., 4) unit quaternions, w >= 0, of rotations (..., 3, 3)."""
    rotation = np.asarray(rotation, dtype=np.float64)
    quaternion = np.roll(_rotations().from_matrix(rotation.reshape(-1, 3, 3)).as_quat(canonical=True), 1, axis=-1)
    return quaternion.reshape(*rotation.shape[:-2], 4)


def continuous_quaternions(rotations: np.ndarray) -> np.ndarray:
    """(T, ..., 4) unit quaternions of rotations (T, ..., 3, 3) over time, with signs so that neighbours in time have a
    product of at least 0: linear interpolation takes the shorter way. w >= 0 at the first."""
    quaternions = quaternion_from_rotation(rotations)
    flips = (quaternions[1:] * quaternions[:-1]).sum(-1) < 0
    signs = np.where(np.cumsum(flips, axis=0) % 2 == 1, -1.0, 1.0)
    quaternions[1:] *= signs[..., None]
    return quaternions


def rotation_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """(..., 3, 3) rotations of quaternions (..., 4), of any length but zero (ValueError)."""
    quaternion = np.asarray(quaternion, dtype=np.float64)
    if not (np.linalg.norm(quaternion, axis=-1) > 0).all():
        raise ValueError("a zero quaternion is no rotation")
    rotation = _rotations().from_quat(np.roll(quaternion.reshape(-1, 4), -1, axis=-1))
    return rotation.as_matrix().reshape(*quaternion.shape[:-1], 3, 3)


def rotation_from_rotvec(rotvec: np.ndarray) -> np.ndarray:
    """(..., 3, 3) rotations of rotation vectors (..., 3): axis times angle in radians."""
    rotvec = np.asarray(rotvec, dtype=np.float64)
    angle = np.linalg.norm(rotvec, axis=-1, keepdims=True)
    half = np.sinc(angle / (2 * np.pi)) / 2 * rotvec  # sin(angle/2) times the axis, also at angle 0
    quaternion = np.concatenate([np.cos(angle / 2), half], axis=-1)
    w, x, y, z = np.moveaxis(quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0)
    entries = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in entries], -2)


def rotvec_from_rotation(rotation: np.ndarray) -> np.ndarray:
    """(..., 3) rotation vectors, angle in [0, pi], of rotations (..., 3, 3)."""
    rotation = np.asarray(rotation, dtype=np.float64)
    return _rotations().from_matrix(rotation.reshape(-1, 3, 3)).as_rotvec().reshape(*rotation.shape[:-2], 3)


def _rotations() -> Any:
    """scipy's class of rotations. Its import takes 0.2 processor seconds, which many commands do not need."""
    from scipy.spatial.transform import Rotation

    return Rotation


def cross_matrix(vector: np.ndarray) -> np.ndarray:
    """(..., 3) -> (..., 3, 3) with cross_matrix(a) @ b = a x b."""
    x, y, z = np.moveaxis(np.asarray(vector, dtype=np.float64), -1, 0)
    zero = np.zeros_like(x)
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*x.shape, 3, 3)


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """(..., 3, 3) the rotation closest to `matrix` in the Frobenius norm (Kabsch; determinant +1)."""
    u, _, vt = np.linalg.svd(np.asarray(matrix, dtype=np.float64))
    sign = np.ones(u.shape[:-1])
    sign[..., 2] = np.linalg.det(u @ vt)
    return (u * sign[..., None, :]) @ vt


# Large coordinates, such as UTM's and those of an earth-centred frame: an offset is subtracted from them, so that
# float32 and optimizers keep their digits.


MAX_SPACING = 1e-4  # of float32 numbers, as a share of the distance between neighbouring cameras


def world_offset(centres: np.ndarray) -> np.ndarray | None:
    """(3,) round numbers near the median of the camera centres (N, 3), to be subtracted from all coordinates; None
    where float32 holds coordinates of their size to a 10,000th of the distance between neighbouring cameras."""
    centres = np.asarray(centres, dtype=np.float64)
    if len(centres) < 2:
        return None
    from scipy.spatial import cKDTree

    nearest = cKDTree(centres).query(centres, k=2)[0][:, 1]
    distinct = nearest[nearest > 0]
    step = float(np.median(distinct)) if len(distinct) else float(np.ptp(centres, axis=0).max())
    if step == 0 or np.spacing(np.float32(np.abs(centres).max())) <= MAX_SPACING * step:
        return None
    unit = 10.0 ** np.ceil(np.log10(step))
    return np.rint(np.median(centres, axis=0) / unit) * unit + 0.0


def add_world_offset(world_from_cam: np.ndarray, offset: np.ndarray | None) -> np.ndarray:
    """(..., 4, 4) the poses in a world whose coordinates are larger by `offset` (3,); the same ones for None."""
    if offset is None:
        return world_from_cam
    poses = np.array(world_from_cam, dtype=np.float64)
    poses[..., :3, 3] += offset
    return poses


def subtract_world_offset(world_from_cam: np.ndarray, offset: np.ndarray | None) -> np.ndarray:
    """(..., 4, 4) the poses in a world whose coordinates are smaller by `offset` (3,): the inverse of `moved`."""
    return add_world_offset(world_from_cam, None if offset is None else -offset)
