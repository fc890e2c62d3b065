"""Checks of camera matrices and poses in files: the shape, the numbers, and whether a camera can be so."""

from __future__ import annotations

from typing import Any

import numpy as np

from dune_cli.errors import DuneError, UserError
from dune_cli.io.json_files import finite_array

LARGEST_SIDE_PX = 1_000_000
FOCAL_PER_SIDE = (1e-3, 1e5)  # plausible focal lengths, in shares of the longer side
FARTHEST = 1e12  # coordinates: beyond it float64 has no digits left for details
LARGEST_RADIAL = 1e6


def pinhole_matrix(
    value: Any, where: str, width: int | None = None, height: int | None = None, error: type[DuneError] = UserError
) -> np.ndarray:
    """`value` as (3, 3) float64 [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels; `where` names it in messages.

    Raises `error` for another shape, numbers that are not finite, skew, another last row, and focal lengths that are
    not positive; with the image's size also for focal lengths and principal points that are implausible for it.
    """
    K = finite_array(value, (3, 3), where, error)
    fx, fy, cx, cy = (float(K[place]) for place in ((0, 0), (1, 1), (0, 2), (1, 2)))
    if not np.array_equal(K[2], (0, 0, 1)):
        raise error(f"{where} has the last row {K[2].tolist()}; it must be 0, 0, 1")
    if fx <= 0 or fy <= 0:
        raise error(f"{where} has focal lengths {fx:g} and {fy:g}; they must be positive pixels")
    if abs(K[0, 1]) > 1e-6 * fx or K[1, 0] != 0:
        raise error(f"{where} has skew ({K[0, 1]:g}); give a pinhole camera without skew")
    side = LARGEST_SIDE_PX if width is None or height is None else max(width, height)
    low = 0.0 if width is None or height is None else FOCAL_PER_SIDE[0] * side
    high = FOCAL_PER_SIDE[1] * side
    if not (low <= fx <= high and low <= fy <= high and abs(cx) <= high and abs(cy) <= high):
        of = "" if width is None else f" of an image of {width} x {height} px"
        raise error(f"{where} ({fx:g}, {fy:g}, {cx:g}, {cy:g}) is no camera{of}; give fx, fy, cx, cy in its pixels")
    return K


def rigid_pose(value: Any, where: str, error: type[DuneError] = UserError) -> np.ndarray:
    """The rigid pose (4, 4) float64 nearest to a (4, 4) or (3, 4) matrix; `where` names it in messages.

    Raises `error` for another shape, numbers that are not finite, a rotation off by more than 1e-2, another last row
    than 0 0 0 1, and a translation beyond 1e12.
    """
    from scipy.spatial.transform import Rotation

    rows = len(value) if isinstance(value, (list, tuple, np.ndarray)) else 4
    matrix = finite_array(value, (3 if rows == 3 else 4, 4), where, error)
    rotation, translation = matrix[:3, :3], matrix[:3, 3]
    off = np.abs(rotation @ rotation.T - np.eye(3)).max() if np.abs(rotation).max() < 2 else np.inf
    if off > 1e-2 or np.linalg.det(rotation) < 0 or (rows == 4 and not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-6)):
        raise error(f"{where} is no rigid pose (a rotation and a translation, last row 0 0 0 1)")
    if np.abs(translation).max() > FARTHEST:
        raise error(f"{where} lies {np.abs(translation).max():.3g} away; coordinates of at most {FARTHEST:g} are read")
    pose = np.eye(4)
    pose[:3, :3] = rotation if off < 1e-9 else Rotation.from_matrix(rotation).as_matrix()
    pose[:3, 3] = translation
    return pose
