"""Large coordinates, such as UTM's and those of an earth-centred frame: what to take off them so that float32 and
optimizers keep their digits."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

MAX_SPACING = 1e-4  # of float32 numbers, as a share of the distance between neighbouring cameras


def world_offset(centres: np.ndarray) -> np.ndarray | None:
    """(3,) round numbers near the middle of the camera centres (N, 3), to be taken off all coordinates; None where
    float32 holds coordinates of their size to a 10,000th of the distance between neighbouring cameras."""
    centres = np.asarray(centres, dtype=np.float64)
    if len(centres) < 2:
        return None
    nearest = cKDTree(centres).query(centres, k=2)[0][:, 1]
    apart = nearest[nearest > 0]
    step = float(np.median(apart)) if len(apart) else float(np.ptp(centres, axis=0).max())
    if step == 0 or np.spacing(np.float32(np.abs(centres).max())) <= MAX_SPACING * step:
        return None
    unit = 10.0 ** np.ceil(np.log10(step))
    return np.rint(np.median(centres, axis=0) / unit) * unit + 0.0


def moved(world_from_cam: np.ndarray, shift: np.ndarray | None) -> np.ndarray:
    """(..., 4, 4) the poses in a world whose coordinates are larger by `shift` (3,); the same ones for None."""
    if shift is None:
        return world_from_cam
    poses = np.array(world_from_cam, dtype=np.float64)
    poses[..., :3, 3] += shift
    return poses


def removed(world_from_cam: np.ndarray, offset: np.ndarray | None) -> np.ndarray:
    """(..., 4, 4) the poses in a world whose coordinates are smaller by `offset` (3,): the inverse of `moved`."""
    return moved(world_from_cam, None if offset is None else -offset)
