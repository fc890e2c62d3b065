"""Pictures with depth that triangles and points are drawn into: by OpenCV's rasteriser, or by ours where it has none.

OpenCV 5 rasterises in C++ and interpolates colours in perspective; its pictures are equal to those of `rendering`, at a
tenth of the time. It does not clip at the near plane, so triangles that cross it are drawn by ours.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dune_cli import optional
from dune_cli.io.rendering import rasterise

SQUARE = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
HALVES = np.array([[0, 1, 2], [0, 2, 3]])
POINTS_AT_A_TIME = 500_000
FAR = 1e9  # times `near`; OpenCV needs a number


class Canvas:
    """A picture that a pinhole camera `K` (3, 3) sees, in OpenCV axes. What is nearer hides what is farther.

    `picture` (height, width, 3) float32 in [0, 1], which begins as `background`; `depth` (height, width) float32, about
    `far` where nothing is drawn. What is nearer than `near` or farther than `far` is not drawn.
    """

    def __init__(
        self, width: int, height: int, K: np.ndarray, near: float, background: tuple[int, int, int] = (255, 255, 255)
    ) -> None:
        self.width, self.height, self.K = width, height, np.asarray(K, np.float64)
        self.near, self.far = near, FAR * near
        self.picture = np.empty((height, width, 3), np.float32)
        self.picture[:] = np.float32(background) / 255
        self.depth = np.full((height, width), self.far, np.float32)
        self._cv2 = optional.require("cv2", "drawing")
        self._by_opencv = hasattr(self._cv2, "triangleRasterize")

    def add_triangles(self, vertices_cam: np.ndarray, faces: np.ndarray, colors: np.ndarray) -> None:
        """Draws triangles `faces` (F, 3) visible from both sides, with `colors` (V, 3) uint8 at their vertices (V, 3)
        in camera axes."""
        shares = np.asarray(colors, np.float32) / 255
        ahead = vertices_cam[:, 2] >= self.near
        if self._by_opencv and ahead.all():
            self._rasterise(self._places(vertices_cam @ self.K.T), faces, shares)
            return
        corners = ahead[faces]
        whole = corners.all(1) & self._by_opencv
        if whole.any():
            self._rasterise(self._places(vertices_cam @ self.K.T), faces[whole], shares)
        rest = faces[corners.any(1) & ~whole]
        raster = rasterise(vertices_cam, rest, self.K, self.width, self.height, self.near)
        nearer = raster.depth < self.depth
        self.picture[nearer] = raster.interpolate(shares, rest)[nearer[raster.covered]]
        self.depth[nearer] = raster.depth[nearer]

    def add_points(self, points_cam: np.ndarray, colors: np.ndarray, side: int) -> None:
        """Draws points (N, 3) in camera axes with `colors` (N, 3) uint8 as squares of `side` pixels."""
        ahead = np.flatnonzero(points_cam[:, 2] >= self.near)
        image = points_cam[ahead] @ self.K.T
        with np.errstate(over="ignore", invalid="ignore"):
            pixels = image[:, :2] / image[:, 2:]
            inside = (pixels > -side).all(1) & (pixels < [self.width + side, self.height + side]).all(1)
        ahead, pixels = ahead[inside], pixels[inside]
        corner = np.rint(pixels - (side - 1) / 2)
        depth, shares = points_cam[ahead, 2], colors[ahead].astype(np.float32) / 255
        if not self._by_opencv:
            self._add_squares(corner.astype(np.int64), depth.astype(np.float32), shares, side)
            return
        for first in range(0, len(corner), POINTS_AT_A_TIME):
            part = slice(first, first + POINTS_AT_A_TIME)
            z = depth[part, None]
            outer = [(corner[part, k, None] - 0.5 + side * SQUARE[:, k]) * z for k in range(2)]
            places = self._places(np.stack([*outer, np.broadcast_to(z, outer[0].shape)], 2).reshape(-1, 3))
            faces = (4 * np.arange(len(z), dtype=np.int32)[:, None, None] + HALVES.astype(np.int32)).reshape(-1, 3)
            self._rasterise(places, faces, np.repeat(shares[part], 4, 0))

    def reduced(self, factor: int) -> np.ndarray:
        """The picture (height / factor, width / factor, 3) uint8: means of squares of `factor` pixels."""
        size = (self.width // factor, self.height // factor)
        picture = self._cv2.resize(self.picture, size, interpolation=self._cv2.INTER_AREA) * 255
        return np.rint(picture).clip(0, 255).astype(np.uint8)

    def _places(self, homogeneous: np.ndarray) -> np.ndarray:
        """(V, 3) float32 in the axes of OpenCV's rasteriser, of pixels times depth and depth (V, 3): its camera has its
        centre in the middle of the picture, y up, z backward, and here a field of view of 90 degrees."""
        half, depth = self.height / 2, homogeneous[:, 2]
        places = np.empty(homogeneous.shape, np.float32)
        places[:, 0] = (homogeneous[:, 0] - (self.width - 1) / 2 * depth) / half
        places[:, 1] = ((self.height - 1) / 2 * depth - homogeneous[:, 1]) / half
        places[:, 2] = -depth
        return places

    def _rasterise(self, places: np.ndarray, faces: np.ndarray, shares: np.ndarray) -> None:
        cv2: Any = self._cv2
        settings = cv2.TriangleRasterizeSettings()
        settings.setCullingMode(cv2.RASTERIZE_CULLING_NONE)
        settings.setShadingType(cv2.RASTERIZE_SHADING_SHADED)
        indices = np.ascontiguousarray(faces, np.int32)
        view = (np.eye(4), math.pi / 2, self.near / 2, self.far, settings)
        cv2.triangleRasterize(places[None], indices[None], shares[None], self.picture, self.depth, *view)

    def _add_squares(self, corner: np.ndarray, depth: np.ndarray, shares: np.ndarray, side: int) -> None:
        """Squares by numpy: their `corner` (N, 2) of the lowest column and row."""
        far_first = np.argsort(-depth, kind="stable")
        corner, depth, shares = corner[far_first], depth[far_first], shares[far_first]
        for dy in range(side):
            for dx in range(side):
                x, y = corner[:, 0] + dx, corner[:, 1] + dy
                shown = (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)
                x, y, at, color = x[shown], y[shown], depth[shown], shares[shown]
                nearer = at < self.depth[y, x]
                x, y = x[nearer], y[nearer]
                self.depth[y, x] = at[nearer]  # of several the last, which is the nearest
                self.picture[y, x] = color[nearer]
