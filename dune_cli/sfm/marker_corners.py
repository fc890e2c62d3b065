"""Corners of black squares on white, more exact than OpenCV's, which lie a third of a pixel too far inside.

Near each corner both edges are located across themselves, by the mean position of the rise from black to white, and a
line is fitted to each; the corner is where the lines meet (as in E. Olson, "AprilTag: A robust and flexible visual
fiducial system", ICRA 2011, whose detector fits lines to all of an edge). Only the half of an edge beside the corner
counts, because lenses bend edges.
"""

from __future__ import annotations

import numpy as np

ALONG = (0.06, 0.5)  # the part of an edge that is looked at for the corner at its beginning
FROM_CORNER_PX = 1.5
SAMPLES = 16  # of an edge
REACH = 1 / 12  # of an edge's length: the black frame of a marker is a tenth of it at least
REACH_PX = (1.5, 8.0)
STEPS_PER_PX = 4
LEAST_CONTRAST = 15.0  # of 8-bit values
OUTLYING = 3.0  # median deviations from a line
FARTHEST = 0.1  # of an edge's length, that a corner may move
FARTHEST_PX = 2.0
ROUNDS = 3


def refine_corners(gray: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """The corners (4, 2) in pixels of a black square on white in a photo (H, W) of 8-bit values, in their order around
    it; as they are where a corner's edges are not seen."""
    middle = corners.mean(axis=0)
    refined = np.asarray(corners, np.float64).copy()
    for _ in range(ROUNDS):
        start = refined.copy()
        for index in range(4):
            lines = [_line(gray, start[index], start[(index + step) % 4], middle) for step in (1, -1)]
            if lines[0] is None or lines[1] is None:
                continue
            (one, along), (other, across) = lines
            turned = along[0] * across[1] - along[1] * across[0]
            if abs(turned) < 1e-3:
                continue
            gap = other - one
            found = one + along * (gap[0] * across[1] - gap[1] * across[0]) / turned
            edges = [
                np.linalg.norm(corners[index] - corners[index - 1]),
                np.linalg.norm(corners[index] - corners[index - 3]),
            ]
            if np.linalg.norm(found - corners[index]) <= max(FARTHEST_PX, FARTHEST * min(edges)):
                refined[index] = found
    return refined


def _line(
    gray: np.ndarray, corner: np.ndarray, end: np.ndarray, middle: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """A point (2,) of the edge from a corner towards its other end, and the direction (2,); None where it is not seen.
    middle: (2,) of the square."""
    length = float(np.linalg.norm(end - corner))
    first = max(ALONG[0], FROM_CORNER_PX / max(length, 1e-9))
    if first >= ALONG[1] / 2:
        return None
    direction = (end - corner) / length
    outward = np.array([-direction[1], direction[0]])
    if outward @ (corner - middle) < 0:
        outward = -outward
    reach = float(np.clip(REACH * length, *REACH_PX))
    offsets = np.linspace(-reach, reach, 2 * round(STEPS_PER_PX * reach) + 1)
    places = corner + direction * (length * np.linspace(first, ALONG[1], SAMPLES))[:, None]  # (N, 2)
    rises = np.diff(_sampled(gray, places[:, None] + outward * offsets[:, None]), axis=1)
    contrast = rises.sum(axis=1)
    seen = contrast >= LEAST_CONTRAST
    if seen.sum() < SAMPLES / 2:
        return None
    between = (offsets[1:] + offsets[:-1]) / 2
    away = (rises[seen] @ between) / contrast[seen]
    points = places[seen] + outward * away[:, None]
    for _ in range(2):
        centre = points.mean(axis=0)
        along = np.linalg.svd(points - centre)[2][0]
        off = np.abs((points - centre) @ np.array([-along[1], along[0]]))
        near = off <= max(OUTLYING * float(np.median(off)), 0.05)
        if near.all() or near.sum() < SAMPLES / 3:
            break
        points = points[near]
    return centre, along


def _sampled(gray: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(...) values of a picture at pixels (..., 2), linearly between their centres, and those of its border outside."""
    height, width = gray.shape
    x, y = (np.clip(pixels[..., axis], 0, side - 1) for axis, side in ((0, width), (1, height)))
    left, top = np.minimum(x.astype(int), width - 2), np.minimum(y.astype(int), height - 2)
    right, down = x - left, y - top
    values = np.asarray(gray, np.float64)
    above = values[top, left] * (1 - right) + values[top, left + 1] * right
    below = values[top + 1, left] * (1 - right) + values[top + 1, left + 1] * right
    return above * (1 - down) + below * down
