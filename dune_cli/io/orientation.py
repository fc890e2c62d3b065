"""The eight EXIF orientations: from the upright photo to its stored pixels and back, for arrays, pixels and cameras.

Orientation 1 is stored upright, 3 turned by 180 degrees, 6 and 8 by 90; 2, 4, 5 and 7 are mirrored as well (EXIF 2.32,
tag 0x0112). No camera sees a mirrored image, so these have no stored camera. Pixels have their centres at integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dune_cli.geometry.cameras import quarter_turn

UPRIGHT = 1
MIRRORED = (2, 4, 5, 7)
# Quarter turns clockwise from the upright picture to the stored one; where it is MIRRORED, after a left-right mirroring
_QUARTER_TURNS = {1: 0, 2: 0, 3: 2, 4: 2, 5: 3, 6: 3, 7: 1, 8: 1}


@dataclass(frozen=True)
class StoredCamera:
    """The camera of a photo's stored pixels: `K` (3, 3), `world_from_cam` (4, 4), the stored size in pixels, and the
    pixel transform `stored_from_upright` (3, 3)."""

    K: np.ndarray
    world_from_cam: np.ndarray
    width: int
    height: int
    stored_from_upright: np.ndarray


def from_tag(value: object) -> int:
    """The orientation for a tag's value: 1 to 8, and 1 for any other value."""
    return value if isinstance(value, int) and value in _QUARTER_TURNS else UPRIGHT


def swapped(orientation: int) -> bool:
    """Whether the stored picture's width is the upright one's height."""
    return orientation >= 5


def quarter_turns(orientation: int) -> int:
    """Quarter turns clockwise from the upright picture to the stored one. ValueError for mirrored orientations."""
    if orientation in MIRRORED:
        raise ValueError(f"EXIF orientation {orientation} mirrors the picture, which no camera does")
    return _QUARTER_TURNS[orientation]


def turned_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Width and height of the stored picture from the upright one's, or the other way round."""
    return (height, width) if swapped(orientation) else (width, height)


def to_upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """The upright picture (H, W, ...) of a stored one, as a view of it."""
    turned = stored.swapaxes(0, 1) if swapped(orientation) else stored
    return _flipped(turned, _linear(orientation).T)


def to_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The stored picture of an upright one (H, W, ...), as a view of it: the inverse of `to_upright`."""
    turned = upright.swapaxes(0, 1) if swapped(orientation) else upright
    return _flipped(turned, _linear(orientation))


def stored_from_upright(width: int, height: int, orientation: int) -> np.ndarray:
    """(3, 3) pixel transform from the upright photo of `width` x `height` px to its stored pixels."""
    turn = quarter_turn(width, height, _QUARTER_TURNS[orientation])
    if orientation in MIRRORED:
        turn = turn @ np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1.0]])
    return turn + 0.0  # no -0.0


def stored_cam_from_cam(orientation: int) -> np.ndarray:
    """(4, 4) the turn about the optical axis from the upright photo's camera to that of the stored pixels. ValueError
    for mirrored orientations."""
    if orientation in MIRRORED:
        raise ValueError(f"EXIF orientation {orientation} mirrors the picture, which no camera does")
    turn = np.eye(4)
    turn[:2, :2] = _linear(orientation)
    return turn


def stored_camera(K: np.ndarray, world_from_cam: np.ndarray, width: int, height: int, orientation: int) -> StoredCamera:
    """The camera of the stored pixels from that of the upright photo: `K` (3, 3) without skew, `world_from_cam` (4, 4),
    the upright size. ValueError for mirrored orientations."""
    turn = stored_cam_from_cam(orientation)
    pixels = stored_from_upright(width, height, orientation)
    K_stored = pixels @ np.asarray(K, np.float64) @ turn[:3, :3].T + 0.0
    pose = np.asarray(world_from_cam, np.float64) @ turn.T + 0.0  # the transpose is the inverse of a turn
    return StoredCamera(K_stored, pose, *turned_size(width, height, orientation), pixels)


def _linear(orientation: int) -> np.ndarray:
    """(2, 2) the turn and mirroring of directions (x, y)."""
    return stored_from_upright(1, 1, orientation)[:2, :2]


def _flipped(picture: np.ndarray, linear: np.ndarray) -> np.ndarray:
    x, y = linear.sum(axis=1)
    picture = picture[:, ::-1] if x < 0 else picture
    return picture[::-1] if y < 0 else picture
