"""Which way is down: from the axes of cameras that were held level, and from the lines of vertical edges.

A line in a photo and the camera's centre span a plane; the planes of vertical edges contain the vertical, in whichever
photo they are (R. Collins and R. Weiss, "Vanishing point calculation as a statistical inference on the unit sphere",
ICCV 1990). numpy, float64; camera axes are x right, y down, z forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dune_cli.geometry.poses import from_rotation_translation

LEVEL_SPREAD = 0.05  # least mean square of the second direction of the cameras' x axes, with which these tell pitch
DECIDES = 0.2  # the mean cosine that tells up from down
AROUND_DEG = 30.0  # about the first guess, where the vertical is looked for
AGREE_DEG = 1.5  # of a plane that contains the vertical
PAIRS = 2000  # of planes that are tried
LEAST_LINES, LEAST_SHARE = 24, 0.25  # of the planes that contain a direction near the guess, by their weight
STEPS = 5


@dataclass(frozen=True)
class Vertical:
    """The direction `down` (3,) in the world, its standard deviation `sd_deg`, and how many `lines` told it."""

    down: np.ndarray
    sd_deg: float
    lines: int


def level_down(rotations: np.ndarray) -> tuple[np.ndarray, float, bool]:
    """Down (3,) by cameras (N, 3, 3, to world) that are held level: across their x axes, which are horizontal then; the
    root mean square angle in degrees that these are off; and whether they tell it all.

    Where all cameras look the same way, the x axes leave the pitch open, which is then the mean of theirs.
    """
    right, below, ahead = rotations[:, :, 0], rotations[:, :, 1].mean(axis=0), rotations[:, :, 2].mean(axis=0)
    squares, directions = np.linalg.eigh(right.T @ right / len(right))
    told = bool(squares[1] > LEVEL_SPREAD)
    down = directions[:, 0] if told else below - right.mean(axis=0) * (below @ right.mean(axis=0))
    down = down / max(float(np.linalg.norm(down)), 1e-300)
    decides = below if abs(down @ below) > DECIDES else ahead  # photos straight down have no lower edge
    if down @ decides < 0:
        down = -down
    off = np.arcsin(np.clip(right @ down, -1, 1))
    return down, float(np.degrees(np.sqrt((off**2).mean()))), told


def vertical_from_planes(normals: np.ndarray, weights: np.ndarray, guess: np.ndarray, seed: int) -> Vertical | None:
    """The direction that most planes contain, within AROUND_DEG of `guess` (3,). None where few planes agree.

    `normals` (N, 3), unit vectors in the world, of the planes of lines, with `weights` (N,).
    """
    near = np.abs(normals @ guess) < np.sin(np.radians(AROUND_DEG))
    normals, weights = normals[near], weights[near]
    if len(normals) < LEAST_LINES:
        return None
    rng = np.random.default_rng(seed)
    pairs = rng.choice(len(normals), (PAIRS, 2), p=weights / weights.sum())
    found = np.cross(normals[pairs[:, 0]], normals[pairs[:, 1]])
    sizes = np.linalg.norm(found, axis=1)
    found = found[sizes > 0.02] / sizes[sizes > 0.02, None]
    found = found * np.sign(found @ guess)[:, None]
    found = found[found @ guess > np.cos(np.radians(AROUND_DEG))]
    if not len(found):
        return None
    limit = np.sin(np.radians(AGREE_DEG))
    scores = (np.abs(found @ normals.T) < limit) @ weights
    down = found[scores.argmax()]
    for _ in range(STEPS):
        agrees = np.abs(normals @ down) < limit
        squares, directions = np.linalg.eigh((normals[agrees] * weights[agrees, None]).T @ normals[agrees])
        down = directions[:, 0] * np.sign(directions[:, 0] @ guess)
    agrees = np.abs(normals @ down) < limit
    if agrees.sum() < LEAST_LINES or weights[agrees].sum() < LEAST_SHARE * weights.sum():
        return None
    # of the direction in which the planes leave it most open
    sd = np.sqrt(squares[0] / max(int(agrees.sum()) - 2, 1) / max(squares[1], 1e-300))
    return Vertical(down, float(np.degrees(sd)), int(agrees.sum()))


def upright_from_world(down: np.ndarray, world_from_cam: np.ndarray) -> np.ndarray:
    """(4, 4) the turn about the world's origin after which y points along `down` (3,) and z the way that a camera looks
    (of one that looks along the vertical, the way that its photo's upper edge points)."""
    forward = world_from_cam[:3, 2] - down * (world_from_cam[:3, 2] @ down)
    if np.linalg.norm(forward) < 0.3:
        above = -world_from_cam[:3, 1]
        forward = above - down * (above @ down)
    forward = forward / np.linalg.norm(forward)
    return from_rotation_translation(np.stack([np.cross(down, forward), down, forward]), np.zeros(3))
