"""Triangle meshes and drawn cameras, as the formats write them, and meshes read from OBJ, GLB and PLY files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mesh:
    """`vertices` (V, 3) in OpenCV axes, `faces` (F, 3) integers, `colors` (V, 3) uint8 sRGB or None, a `name`."""

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray | None = None
    name: str = "mesh"

    def __post_init__(self) -> None:
        count = len(self.vertices)
        check_points(self.vertices, self.name)
        if self.faces.shape != (len(self.faces), 3) or self.faces.dtype.kind not in "iu":
            raise ValueError(f"{self.name}: faces must be (F, 3) integers, got {self.faces.shape} {self.faces.dtype}")
        if len(self.faces) and not 0 <= self.faces.min() <= self.faces.max() < count:
            raise ValueError(f"{self.name}: faces must name vertices 0 to {count - 1}")
        check_colors(self.colors, count, self.name)


@dataclass(frozen=True)
class Frustum:
    """A camera to draw: `K` (3, 3) in pixels of a `width` x `height` image, `world_from_cam` (4, 4), OpenCV axes."""

    K: np.ndarray
    world_from_cam: np.ndarray
    width: int
    height: int
    name: str = "camera"


def check_points(points: np.ndarray, name: str) -> None:
    """ValueError unless `points` are (M, 3) and finite."""
    if points.shape != (len(points), 3) or not np.isfinite(points).all():
        raise ValueError(f"{name}: positions must be (M, 3) and finite, got {points.shape}")


def check_colors(colors: np.ndarray | None, count: int, name: str) -> None:
    """ValueError unless `colors` are None or (count, 3) uint8."""
    if colors is not None and (colors.shape != (count, 3) or colors.dtype != np.uint8):
        raise ValueError(f"{name}: colors must be {(count, 3)} uint8, got {colors.shape} {colors.dtype}")
