"""Where a virtual camera stands to show a scene: by a real camera, or by the robust extent of the points; orbits; rays.

OpenCV axes; float64. Formulas: R. Hartley and A. Zisserman, "Multiple View Geometry", 2nd ed., section 6.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dune_cli.geometry.cameras import K_from_fov
from dune_cli.geometry.poses import from_rotation_translation, rotation_from_rotvec

EXTENT_FOV_DEG = 50.0  # across the long side, of a camera framed by the extent
EXTENT_PERCENT = (2.0, 98.0)  # of the points along each axis
MARGIN = 1.1
SURFACE = 1.02  # distances up to this factor belong to one surface


@dataclass(frozen=True)
class VirtualCamera:
    """A pinhole camera: `K` (3, 3) in pixels of a `width` x `height` picture, `world_from_cam` (4, 4); `pivot_world`
    (3,), the point that it looks at and turns about."""

    K: np.ndarray
    world_from_cam: np.ndarray
    width: int
    height: int
    pivot_world: np.ndarray

    def turned(self, azimuth_deg: float, elevation_deg: float) -> VirtualCamera:
        """The camera moved about its pivot by angles in degrees: to its right and up, at the same distance."""
        about_y = rotation_from_rotvec(np.array([0.0, -np.radians(azimuth_deg), 0.0]))
        about_x = rotation_from_rotvec(np.array([-np.radians(elevation_deg), 0.0, 0.0]))
        axes, centre = self.world_from_cam[:3, :3], self.world_from_cam[:3, 3]
        turned = axes @ about_y @ about_x
        position = self.pivot_world + turned @ axes.T @ (centre - self.pivot_world)
        return replace(self, world_from_cam=from_rotation_translation(turned, position))

    def farther(self, factor: float) -> VirtualCamera:
        """The camera at `factor` times its distance from the pivot."""
        pose = self.world_from_cam.copy()
        pose[:3, 3] = self.pivot_world + factor * (pose[:3, 3] - self.pivot_world)
        return replace(self, world_from_cam=pose)


def frame_camera(
    K: np.ndarray, world_from_cam: np.ndarray, size: tuple[int, int], picture: tuple[int, int], points: np.ndarray
) -> VirtualCamera:
    """A real camera, of photos of `size` (width, height), as one of a `picture` in whose middle the whole photo fits.

    The pivot lies on its optical axis at the median depth of the `points` (N, 3) before it; without any, 1 before it.
    """
    (width, height), (wide, tall) = size, picture
    scale = min(wide / width, tall / height)
    fitted = np.array(K, np.float64)
    fitted[:2] *= scale
    fitted[0, 2] += (scale - 1) / 2 + (wide - scale * width) / 2  # pixel centres at integers
    fitted[1, 2] += (scale - 1) / 2 + (tall - scale * height) / 2
    pose = np.array(world_from_cam, np.float64)
    depth = (points - pose[:3, 3]) @ pose[:3, 2]
    ahead = depth[depth > 0]
    distance = float(np.median(ahead)) if len(ahead) else 1.0
    return VirtualCamera(fitted, pose, wide, tall, pose[:3, 3] + distance * pose[:3, 2])


def frame_extent(points: np.ndarray, picture: tuple[int, int]) -> VirtualCamera:
    """A camera that looks along z, with y down, at the box of the points (N, 3) between the 2nd and the 98th percentile
    along each axis, and sees all of it."""
    low, high = np.percentile(points, EXTENT_PERCENT, axis=0)
    centre, half = (low + high) / 2, (high - low) / 2
    K = K_from_fov(EXTENT_FOV_DEG, *picture)
    tangent = np.array(picture) / 2 / K[0, 0]
    distance = half[2] + MARGIN * float((half[:2] / tangent).max())
    pose = np.eye(4)
    pose[:3, 3] = centre - [0, 0, distance or 1.0]
    return VirtualCamera(K, pose, *picture, pivot_world=centre)


def up_direction(poses: Sequence[np.ndarray]) -> np.ndarray:
    """(3,) unit vector: the mean of the upward axes (-y) of cameras `world_from_cam` (4, 4), which people hold upright;
    -y without cameras, and where they cancel out."""
    total = -np.sum([pose[:3, 1] for pose in poses], axis=0) if len(poses) else np.zeros(3)
    length = float(np.linalg.norm(total))
    return total / length if length > 0.1 * max(1, len(poses)) else np.array([0.0, -1.0, 0.0])


def nearest_to_ray(points: np.ndarray, origin: np.ndarray, direction: np.ndarray, within_rad: float) -> int | None:
    """The index of the point (N, 3) that a ray hits: of the points at most `within_rad` off the ray the nearest to its
    origin, or, among those up to 2 % farther away (one surface), the nearest to the ray. None without any."""
    direction = np.asarray(direction, np.float64) / np.linalg.norm(direction)
    offsets = np.asarray(points, np.float64) - origin
    along = offsets @ direction
    off = np.linalg.norm(offsets - along[:, None] * direction, axis=1)
    near = np.flatnonzero((along > 0) & (off <= np.tan(within_rad) * along))
    if not len(near):
        return None
    surface = near[along[near] <= SURFACE * along[near].min()]
    return int(surface[np.argmin(off[surface] / along[surface])])


def hit_triangle(vertices: np.ndarray, faces: np.ndarray, origin: np.ndarray, direction: np.ndarray) -> float | None:
    """The smallest t > 0 at which origin + t direction meets a triangle, from either side; None where it meets none.

    T. Moeller and B. Trumbore, "Fast, minimum storage ray-triangle intersection", 1997.
    """
    first, second, third = (np.asarray(vertices, np.float64)[faces[:, k]] for k in range(3))
    edge1, edge2 = second - first, third - first
    across = np.cross(direction, edge2)
    determinant = np.einsum("fc,fc->f", edge1, across)
    from_first = origin - first
    other = np.cross(from_first, edge1)
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.einsum("fc,fc->f", from_first, across) / determinant
        v = other @ np.asarray(direction, np.float64) / determinant
        t = np.einsum("fc,fc->f", edge2, other) / determinant
        hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0) & np.isfinite(t)
    return float(t[hit].min()) if hit.any() else None
