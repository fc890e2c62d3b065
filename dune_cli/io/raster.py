"""A small z-buffer rasteriser for triangle meshes in plain numpy: no OpenGL, no clipping, exact barycentrics.

Where the ray of pixel (x, y) meets the plane of a triangle with homogeneous corners h0, h1, h2 (pixels times depth,
depth), the corners' shares solve [h0 h1 h2] w = (x, y, 1): they are linear in the pixel, correct in perspective, and
all non-negative just inside the part of the triangle that lies in front of the camera (Olano and Greer 1997).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

NEAR = 1e-3
EDGE_PX = 1e-7  # pixels on an edge belong to the triangles on both sides, so that no crack opens by rounding
FLAT = 1e-11  # triangles seen exactly edge-on, or without area, down to rounding
CHUNK = 2_000_000  # candidate pixels held at a time


@dataclass(frozen=True)
class Raster:
    """What each pixel of a view shows; pixel (0, 0) is the centre of the top left one.

    depth (H, W) float32, infinite where there is nothing; face_index (H, W) int32, -1 there; barycentric (H, W, 3)
    float32, the shares of the face's corners at the surface point (not in the picture), 0 there.
    """

    depth: np.ndarray
    face_index: np.ndarray
    barycentric: np.ndarray

    @property
    def covered(self) -> np.ndarray:
        """(H, W) bool: where there is a surface."""
        return self.face_index >= 0

    def interpolate(self, values: np.ndarray, faces: np.ndarray) -> np.ndarray:
        """Values (V, C) of vertices at the covered pixels, row by row: (covered pixels, C)."""
        corners = values[faces[self.face_index[self.covered]]]
        return np.einsum("nk,nkc->nc", self.barycentric[self.covered], corners)


def rasterise(
    vertices_cam: np.ndarray, faces: np.ndarray, K: np.ndarray, width: int, height: int, near: float = NEAR
) -> Raster:
    """The nearest surface at every pixel of a pinhole view.

    vertices_cam (V, 3) in OpenCV camera axes, faces (F, 3) seen from both sides, K (3, 3). Surface nearer than `near`
    (same unit as the vertices) or behind the camera is not shown; triangles may cross that plane.
    """
    vertices = np.asarray(vertices_cam, np.float64)
    return _draw(vertices @ np.asarray(K, np.float64).T, vertices[:, 2], faces, width, height, near)


def rasterise_parallel(points_px: np.ndarray, depth: np.ndarray, faces: np.ndarray, width: int, height: int) -> Raster:
    """The same for a parallel projection: `points_px` (V, 2) in pixels, `depth` (V,) along the view, less is nearer."""
    homogeneous = np.concatenate([points_px, np.ones((len(points_px), 1))], 1, dtype=np.float64)
    return _draw(homogeneous, np.asarray(depth, np.float64), faces, width, height, -np.inf)


def _draw(
    homogeneous: np.ndarray, depth: np.ndarray, faces: np.ndarray, width: int, height: int, near: float
) -> Raster:
    best = np.full(height * width, np.inf)
    face_index = np.full(height * width, -1, np.int32)
    barycentric = np.zeros((height * width, 3), np.float32)
    faces = np.asarray(faces)
    low, high = _rectangles(homogeneous[faces], width, height)
    ahead = (homogeneous[faces, 2] > 0).any(1) & (depth[faces] >= near).any(1)
    shown = np.flatnonzero(ahead & (high >= low).all(1))
    corners, corner_depth, low, high = homogeneous[faces[shown]], depth[faces[shown]], low[shown], high[shown]
    corners[..., :2] -= corners[..., 2:] * low[:, None]  # small numbers keep small triangles exact
    edges = np.stack([np.cross(corners[:, k - 2], corners[:, k - 1]) for k in range(3)], 1)
    volume = np.einsum("fc,fc->f", corners[:, 0], edges[:, 0])
    flat = np.abs(volume) <= FLAT * np.linalg.norm(corners, axis=2).prod(1)
    edges /= np.where(flat, 1, volume)[:, None, None]
    high[flat] = low[flat] - 1
    for face, x, y in _pixels(edges, high - low + 1):
        shares = np.stack([edges[face, k, 0] * x + edges[face, k, 1] * y + edges[face, k, 2] for k in range(3)], 1)
        np.maximum(shares, 0, out=shares)
        shares /= shares.sum(1, keepdims=True)
        at = np.einsum("nk,nk->n", shares, corner_depth[face])
        pixel = (y + low[face, 1]) * width + x + low[face, 0]
        nearer = (at >= near) & (at < best[pixel])
        pixel, at, face, shares = pixel[nearer], at[nearer], face[nearer], shares[nearer]
        np.minimum.at(best, pixel, at)
        wins = at == best[pixel]
        face_index[pixel[wins]] = shown[face[wins]]
        barycentric[pixel[wins]] = shares[wins]
    return Raster(
        best.astype(np.float32).reshape(height, width),
        face_index.reshape(height, width),
        barycentric.reshape(height, width, 3),
    )


def _rectangles(corners: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last pixel, (F, 2) x and y, of each triangle's box inside the image; last < first if outside.

    A triangle that reaches behind the camera may be anywhere: its box is the image.
    """
    whole = (corners[..., 2] > 0).all(1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        pixels = corners[..., :2] / corners[..., 2:]
    size = np.array([width, height])
    low = np.where(whole, np.ceil(pixels.min(1) - EDGE_PX), 0)
    high = np.where(whole, np.floor(pixels.max(1) + EDGE_PX), size - 1)
    return np.clip(low, 0, size).astype(np.int64), np.clip(high, -1, size - 1).astype(np.int64)


def _pixels(edges: np.ndarray, sizes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every (triangle, column, row) in the triangles' boxes of `sizes` (F, 2) whose centre lies inside, in chunks.

    edges (F, 3, 3): each corner's share is edges[:, k] . (column, row, 1). In a row, all three are non-negative in
    between two columns.
    """
    face = np.repeat(np.arange(len(edges)), sizes[:, 1])
    row = _count_up(sizes[:, 1])
    left, right = np.zeros(len(face)), sizes[face, 0] - 1.0
    slack = EDGE_PX * np.hypot(edges[..., 0], edges[..., 1])
    for k in range(3):
        slope, rest = edges[face, k, 0], edges[face, k, 1] * row + edges[face, k, 2] + slack[face, k]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            zero = -rest / slope
        left = np.where(slope > 0, np.maximum(left, zero), left)
        right = np.where(slope < 0, np.minimum(right, zero), right)
        right[(slope == 0) & (rest < 0)] = -np.inf
    left, right = np.ceil(left), np.floor(right)
    filled = right >= left
    face, row, left, right = face[filled], row[filled], left[filled].astype(np.int64), right[filled].astype(np.int64)
    lengths = right - left + 1
    for part in np.split(np.arange(len(face)), np.flatnonzero(np.diff(np.cumsum(lengths) // CHUNK)) + 1):
        line = np.repeat(part, lengths[part])
        yield face[line], left[line] + _count_up(lengths[part]), row[line]


def _count_up(lengths: np.ndarray) -> np.ndarray:
    """0 … n-1 for every n in `lengths`, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
